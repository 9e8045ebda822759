/* NVIDIA's management library without a driver. */
#define NOT_LOADED(name) int name(void) { return 9; }
NOT_LOADED(nvmlInit_v2)
NOT_LOADED(nvmlShutdown)
NOT_LOADED(nvmlSystemGetDriverVersion)
const char *nvmlErrorString(int code) { return "driver not loaded"; }
