/* Stands in for libnvinfer_plugin; see nvinfer.c. */
int initLibNvInferPlugins(void* logger, const char* name) { return 1; }
