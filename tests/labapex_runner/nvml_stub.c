/* A libnvidia-ml.so.1 with one GPU, driven by environment variables: what the driver answers without a driver. */
#include <stdlib.h>
#include <string.h>

static int failing(const char *call) {
    const char *named = getenv("NVML_FAILS");
    return named && strcmp(named, call) == 0 ? atoi(getenv("NVML_CODE")) : 0;
}
int nvmlInitWithFlags(unsigned f) { return failing("init"); }
int nvmlInit_v2(void) { return failing("init"); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "an error"; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **handle) { *handle = (void *)(long)(i + 1); return failing("handle"); }
int nvmlDeviceGetHandleByUUID(const char *u, void **handle) {
    *handle = (void *)9L;
    return strcmp(u, "GPU-nine") == 0 ? 0 : 2;
}
int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
    rates[0] = handle == (void *)9L ? 99 : 40 + (unsigned)(long)handle;
    rates[1] = 7;
    return failing("utilisation");
}
int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    memory[0] = 1000; memory[1] = 400; memory[2] = 600;
    return failing("memory");
}
int nvmlDeviceGetName(void *handle, char *name, unsigned size) { strncpy(name, "Stub GPU", size); return failing("name"); }
