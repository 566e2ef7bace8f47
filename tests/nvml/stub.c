/* A libnvidia-ml.so.1 that plays a trace: what the driver answers, without a driver.

   NVML_TRACE names a file of lines that set something, until `next` ends a reading; each call for the utilisation moves on to
   the next reading, and the last one stays. Without a trace there is one GPU with some figures.

     name|uuid|driver TEXT      device 0 has the uuid, device i "TEXT-i"
     gpus N    cuda 13000    capability 9 0    total BYTES    limit MILLIWATTS    mig 0|1    ecc 0|1
     util PERCENT    used BYTES    power MILLIWATTS    temperature C    clock MHZ    reasons MASK
     process PID BYTES PERCENT    processes none
     fail CALL CODE             CALL as below, or "all"; code 0 heals */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long big;
static struct { char call[24]; int code; } fails[32];
static struct { unsigned pid; big memory; unsigned util; } procs[16];
static char name[96] = "Stub GPU", uuid[96] = "GPU-stub", driver[80] = "580.00";
static unsigned gpus = 1, util = 41, power = 350000, limit = 700000, temperature = 61, clock_mhz = 1980, mig, ecc = 1, count, nfails;
static int cuda = 13000, major = 9, minor;
static big total = 1000, used = 600, reasons, stamp;
static FILE *trace;
static int loaded, reading;

static void set_fail(const char *call, int code) {
    unsigned i = 0;
    while (i < nfails && strcmp(fails[i].call, call)) i++;
    if (i == 32) return;
    if (i == nfails) nfails++;
    snprintf(fails[i].call, sizeof fails[i].call, "%s", call);
    fails[i].code = code;
}
static void advance(void) {
    char line[256], call[24];
    int code;
    stamp += 1000000;
    while (trace && fgets(line, sizeof line, trace) && strcmp(line, "next\n")) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "name ", 5)) snprintf(name, sizeof name, "%s", line + 5);
        else if (!strncmp(line, "uuid ", 5)) snprintf(uuid, sizeof uuid, "%s", line + 5);
        else if (!strncmp(line, "driver ", 7)) snprintf(driver, sizeof driver, "%s", line + 7);
        else if (sscanf(line, "fail %23s %d", call, &code) == 2) set_fail(call, code);
        else if (!strcmp(line, "processes none")) count = 0;
        else if (count < 16 && sscanf(line, "process %u %llu %u", &procs[count].pid, &procs[count].memory, &procs[count].util) == 3) count++;
        else if (sscanf(line, "gpus %u", &gpus) + sscanf(line, "cuda %d", &cuda) + sscanf(line, "capability %d %d", &major, &minor)
               + sscanf(line, "total %llu", &total) + sscanf(line, "limit %u", &limit) + sscanf(line, "mig %u", &mig)
               + sscanf(line, "ecc %u", &ecc) + sscanf(line, "util %u", &util) + sscanf(line, "used %llu", &used)
               + sscanf(line, "power %u", &power) + sscanf(line, "temperature %u", &temperature)
               + sscanf(line, "clock %u", &clock_mhz) + sscanf(line, "reasons %llx", &reasons) <= 0) {
            fprintf(stderr, "nvml stub: what is \"%s\"?\n", line);
            abort();
        }
    }
}
static int failing(const char *call) {
    if (!loaded) {
        loaded = 1;
        if (getenv("NVML_TRACE") && !(trace = fopen(getenv("NVML_TRACE"), "r"))) abort();
        advance();
    }
    for (unsigned i = 0; i < nfails; i++)
        if (fails[i].code && (!strcmp(fails[i].call, call) || !strcmp(fails[i].call, "all"))) return fails[i].code;
    return 0;
}
static unsigned index_of(void *handle) { return (unsigned)(long)handle - 1; }

int nvmlInitWithFlags(unsigned f) { (void)f; return failing("init"); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the stub"; }
int nvmlDeviceGetCount_v2(unsigned *n) { int bad = failing("count"); *n = gpus; return bad; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { int bad = failing("driver"); snprintf(out, size, "%s", driver); return bad; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { int bad = failing("cuda"); *out = cuda; return bad; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **handle) {
    int bad = failing("handle");
    *handle = (void *)(long)(i + 1);
    return bad ? bad : i < gpus ? 0 : 2;
}
int nvmlDeviceGetUUID(void *handle, char *out, unsigned size) {
    int bad = failing("uuid");
    if (index_of(handle)) snprintf(out, size, "%s-%u", uuid, index_of(handle));
    else snprintf(out, size, "%s", uuid);
    return bad;
}
int nvmlDeviceGetHandleByUUID(const char *wanted, void **handle) {
    char own[120];
    int bad = failing("handle");
    for (unsigned i = 0; !bad && i < gpus; i++) {
        *handle = (void *)(long)(i + 1);
        nvmlDeviceGetUUID(*handle, own, sizeof own);
        if (!strcmp(own, wanted)) return 0;
    }
    return bad ? bad : 6;
}
int nvmlDeviceGetName(void *handle, char *out, unsigned size) {
    int bad = failing("name");
    (void)handle;
    snprintf(out, size, "%s", name);
    return bad;
}
int nvmlDeviceGetCudaComputeCapability(void *handle, int *a, int *b) { int bad = failing("capability"); (void)handle; *a = major; *b = minor; return bad; }
int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *then) { int bad = failing("mig"); (void)handle; *now = *then = mig; return bad; }
int nvmlDeviceGetEccMode(void *handle, unsigned *now, unsigned *then) { int bad = failing("ecc"); (void)handle; *now = *then = ecc; return bad; }
int nvmlDeviceGetPowerManagementLimit(void *handle, unsigned *out) { int bad = failing("limit"); (void)handle; *out = limit; return bad; }
int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
    int bad = failing("utilisation");
    if (reading) { advance(); bad = failing("utilisation"); }
    reading = 1;
    rates[0] = util + index_of(handle);
    rates[1] = 7;
    return bad;
}
int nvmlDeviceGetMemoryInfo(void *handle, big *memory) {
    int bad = failing("memory");
    (void)handle;
    memory[0] = total; memory[1] = total - used; memory[2] = used;
    return bad;
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned *out) { int bad = failing("power"); (void)handle; *out = power; return bad; }
int nvmlDeviceGetTemperatureV(void *handle, int *out) { int bad = failing("temperature"); (void)handle; out[2] = (int)temperature; return bad; }
int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *out) {
    int bad = failing("old-temperature");
    (void)handle; (void)sensor;
    *out = temperature;
    return bad;
}
int nvmlDeviceGetClockInfo(void *handle, unsigned which, unsigned *out) { int bad = failing("clock"); (void)handle; (void)which; *out = clock_mhz; return bad; }
int nvmlDeviceGetCurrentClocksEventReasons(void *handle, big *out) { int bad = failing("reasons"); (void)handle; *out = reasons; return bad; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *n, void *list) {
    struct { unsigned pid; big memory; unsigned gi, ci; } *out = list;
    int bad = failing("processes");
    (void)handle;
    if (bad) return bad;
    if (*n < count) { *n = count; return 7; }
    for (unsigned i = 0; i < count; i++) { out[i].pid = procs[i].pid; out[i].memory = procs[i].memory; }
    *n = count;
    return 0;
}
int nvmlDeviceGetProcessUtilization(void *handle, void *list, unsigned *n, big since) {
    struct { unsigned pid; big at; unsigned sm, mem, enc, dec; } *out = list;
    int bad = failing("process-utilisation");
    unsigned busy = 0;
    (void)handle;
    if (bad) return bad;
    for (unsigned i = 0; i < count; i++) busy += procs[i].util > 0 && stamp > since;
    if (!busy) return 6;
    if (*n < busy) { *n = busy; return 7; }
    *n = 0;
    for (unsigned i = 0; i < count; i++)
        if (procs[i].util) { out[*n].pid = procs[i].pid; out[*n].at = stamp; out[*n].sm = procs[i].util; ++*n; }
    return 0;
}
