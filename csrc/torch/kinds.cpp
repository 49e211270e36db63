#define PY_SSIZE_T_CLEAN
#include "kinds.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/object_ptr.h>

#include <cstdint>
#include <string>

#include "plain.h"

namespace addnorm {
namespace {

constexpr uintptr_t kAligned = 16;  // bytes

// Each tensor's part ends where its own head says, so that no two lists of tensors have the same bytes.
void append(std::string& kind, const at::Tensor& t) {
  const char head[] = {static_cast<char>(t.dim() + 1), static_cast<char>(t.scalar_type()), static_cast<char>(t.device().type()),
                       static_cast<char>(t.device().index()), static_cast<char>(t.requires_grad())};
  kind.append(head, sizeof(head));
  kind.append(reinterpret_cast<const char*>(t.sizes().data()), t.sizes().size() * sizeof(int64_t));
}

}  // namespace

PyObject* kinds(PyObject*, PyObject* tensors) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(PyTuple_Check(tensors), "addnorm: expected a tuple");
  const Py_ssize_t count = PyTuple_GET_SIZE(tensors);
  THPObjectPtr addresses(PyList_New(count));
  if (!addresses) throw python_error();
  std::string kind;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject *object = PyTuple_GET_ITEM(tensors, i), *address = nullptr;
    if (object == Py_None) {
      kind.push_back(0);
      address = Py_NewRef(Py_None);
    } else {
      if (!THPVariable_CheckExact(object)) Py_RETURN_NONE;
      const at::Tensor& t = THPVariable_Unpack(object);
      if (!is_dense(t) || !t.is_contiguous() || t.dim() > 64 || !t.unsafeGetTensorImpl()->storage_initialized()) Py_RETURN_NONE;
      const auto place = reinterpret_cast<uintptr_t>(t.const_data_ptr());
      if (place == 0 || place % kAligned != 0) Py_RETURN_NONE;
      append(kind, t);
      address = PyLong_FromUnsignedLongLong(place);
    }
    PyList_SET_ITEM(addresses.get(), i, address);
  }
  return Py_BuildValue("(y#N)", kind.data(), static_cast<Py_ssize_t>(kind.size()), addresses.release());
  END_HANDLE_TH_ERRORS
}

}  // namespace addnorm
