/* Stands in for libnvinfer, so that the real Python bindings can be imported and looked at. Nothing here builds or runs. */
void* createInferBuilder_INTERNAL(void* logger, int version) { return 0; }
void* createInferRefitter_INTERNAL(void* engine, void* logger, int version) { return 0; }
void* createInferRuntime_INTERNAL(void* logger, int version) { return 0; }
void* getBuilderPluginRegistry(int capability) { return 0; }
void* getPluginRegistry(void) { return 0; }
