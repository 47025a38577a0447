/* The eval callback of a context (ggml-backend.h, ggml_backend_sched_eval_callback) in C: asked about
   every node of a graph, it calls Python for the wanted ones alone. No header of ggml's is needed:
   the function that names a tensor is handed in. mars_gguf/runtime/tap.py has the same in Python. */
#include <Python.h>
#include <stdbool.h>
#include <string.h>

struct tap {
    const char *(*name_of)(const void *tensor);
    bool (*visit)(void *tensor, bool ask, void *user_data);
    const char *names; /* each ended by a zero, an empty one at the end; NULL: nothing is wanted */
};

static bool on_node(void *tensor, bool ask, void *user_data) {
    const struct tap *tap = user_data;
    if (!ask)
        return tap->visit(tensor, false, user_data);
    if (tap->names == NULL)
        return false;
    const char *name = tap->name_of(tensor);
    for (const char *wanted = tap->names; *wanted; wanted += strlen(wanted) + 1)
        if (strcmp(name, wanted) == 0)
            return true;
    return false;
}

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_tap", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__tap(void) {
    PyObject *self = PyModule_Create(&module);
    PyObject *address = PyLong_FromVoidPtr((void *)on_node);
    if (self == NULL || address == NULL || PyModule_AddObject(self, "on_node", address) < 0)
        return NULL;
    return self;
}
