/* A driver that finds no GPU: what the plug-in of TensorRT for RTX needs to be loaded on a machine without one. */
#define NO_DEVICE(name) int name(void) { return 100; }
NO_DEVICE(cuInit)
NO_DEVICE(cuCtxCreate_v4)
NO_DEVICE(cuCtxDestroy_v2)
NO_DEVICE(cuCtxGetCurrent)
NO_DEVICE(cuCtxPopCurrent_v2)
NO_DEVICE(cuCtxPushCurrent_v2)
NO_DEVICE(cuCtxSetCurrent)
NO_DEVICE(cuStreamGetCtx)
NO_DEVICE(cuGetErrorString)
NO_DEVICE(cuImportExternalMemory)
NO_DEVICE(cuImportExternalSemaphore)
NO_DEVICE(cuDestroyExternalMemory)
NO_DEVICE(cuDestroyExternalSemaphore)
NO_DEVICE(cuExternalMemoryGetMappedBuffer)
NO_DEVICE(cuSignalExternalSemaphoresAsync)
NO_DEVICE(cuWaitExternalSemaphoresAsync)
/* Newer bindings ask for every function by its name: all are found, and each says that there is no GPU. */
static int no_device(void) { return 100; }
int cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long long flags, void *status) {
    *function = (void *)no_device;
    if (status) *(int *)status = 0;
    return 0;
}
