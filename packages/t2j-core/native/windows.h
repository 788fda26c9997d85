// Windows: tensors that show the memory of one call at a time, and own none.
//
// An autograd graph that is recorded on them refers to no memory of XLA once they are closed, and its backward opens
// them on its own operands. Python owns these objects, and calls the methods with the GIL held. Those that return a
// `Ref` or a bool fail with a Python error set. What reads a closed window reads the blank memory.
#pragma once
#include <Python.h>

#include <vector>

#include "borrow.h"
#include "ref.h"

namespace t2j {

class Windows {
 public:
  // Whether this torch has what windows need.
  static bool are_known();

  // Opens a window on each tensor of a list.
  bool make(PyObject* tensors);

  PyObject* tensors() const { return tensors_.get(); }  // a list, one for each; borrowed

  // Shows the memory of each of the tensors of a list, which have the same shapes.
  bool open(PyObject* tensors);

  // Shows the memory at `blank`, which is as large as the largest window and never freed.
  void close(void* blank);

  // For each window, how many refer to the Python object, to the tensor, and to the memory, and whether the tensor still
  // has that memory. As bytes, to compare.
  Ref owners() const;

  // The places of those tensors of a list that share memory with a window. The list may have None.
  Ref sharing(PyObject* tensors) const;

  // Whether window `i` shows the memory that it was made for, and has not got other memory.
  bool has_own(size_t i) const;

  // Gives what refers to the memory of window `i` that of a storage, for good.
  bool move(size_t i, PyObject* storage);

 private:
  void show(size_t i, void* address);

  Ref tensors_;
  OwnBorrows borrows_;  // after the tensors, which may outlive this: the last of both frees the block
  std::vector<bool> is_moved_;  // what was lent may live on, in the storage that it was exchanged with
  size_t count_ = 0;
};

}  // namespace t2j
