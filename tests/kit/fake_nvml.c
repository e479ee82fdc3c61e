/* libnvidia-ml.so.1 without a GPU: it says what the file $FAKE_NVML says.
 *
 * Every line of the file is "key value". Keys: count, init, hang (every call waits while it is 1),
 * event (a serial number: a new one is one event), event.gpu, event.xid; and for device N: error.N
 * (each call returns it), ecc.N, recovery.N, pending.N, failed.N, used.N. What is missing is 0.
 * Only what backend_adapter/gpu_reader.py calls is here.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, TIMED_OUT = 10, PAUSE_US = 20000, MAX = 32 };
static char device[MAX]; /* a handle is an address in here */
static unsigned long seen_event;

static unsigned long value(const char *key) {
    char name[64];
    unsigned long number, found = 0;
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file == NULL) return 0;
    while (fscanf(file, "%63s %lu", name, &number) == 2)
        if (strcmp(name, key) == 0) found = number;
    fclose(file);
    return found;
}

static unsigned long of(const char *key, void *handle) {
    char name[64];
    snprintf(name, sizeof name, "%s.%ld", key, (long)((char *)handle - device));
    return value(name);
}

static void hang(void) {
    while (value("hang")) usleep(PAUSE_US);
}

static int enter(void *handle) {
    hang();
    return (int)of("error", handle);
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    hang();
    seen_event = value("event");
    return (int)value("init");
}

int nvmlShutdown(void) {
    return OK;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error of the fake library";
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    hang();
    *count = (unsigned)value("count");
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (index >= MAX) return INVALID;
    *handle = &device[index];
    return enter(*handle);
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    snprintf(name, length, "Fake H100");
    return enter(handle);
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-fake-%ld", (long)((char *)handle - device));
    return enter(handle);
}

int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    memory[0] = 80ULL << 30;
    memory[2] = of("used", handle);
    memory[1] = memory[0] - memory[2];
    return enter(handle);
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
    rates[0] = 50;
    rates[1] = 25;
    return enter(handle);
}

int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, unsigned long long *count) {
    if (kind != 1 || counter != 0) return INVALID; /* uncorrected, volatile */
    *count = of("ecc", handle);
    return enter(handle);
}

int nvmlDeviceGetRemappedRows(void *handle, unsigned *corr, unsigned *unc, unsigned *pending,
                              unsigned *failed) {
    *corr = *unc = 0;
    *pending = (unsigned)of("pending", handle);
    *failed = (unsigned)of("failed", handle);
    return enter(handle);
}

int nvmlDeviceGetRetiredPagesPendingStatus(void *handle, unsigned *pending) {
    (void)handle;
    (void)pending;
    return UNSUPPORTED; /* as on every device that remaps rows */
}

struct field {
    uint32_t id, scope;
    int64_t at, latency;
    uint32_t type, result;
    union {
        uint32_t number;
        uint64_t wide;
    } value;
};

int nvmlDeviceGetFieldValues(void *handle, int count, struct field *fields) {
    for (int i = 0; i < count; i++) {
        fields[i].result = fields[i].id == 230 ? OK : UNSUPPORTED; /* the recovery action */
        fields[i].value.wide = of("recovery", handle);
    }
    return enter(handle);
}

int nvmlEventSetCreate(void **set) {
    *set = device;
    hang();
    return OK;
}

int nvmlDeviceRegisterEvents(void *handle, unsigned long long kinds, void *set) {
    (void)set;
    return kinds == 8 ? enter(handle) : UNSUPPORTED; /* Xid errors */
}

struct event {
    void *handle;
    unsigned long long kind, data;
    unsigned gpu_instance, compute_instance;
};

int nvmlEventSetWait_v2(void *set, struct event *event, unsigned timeout_ms) {
    (void)set;
    for (long left_us = (long)timeout_ms * 1000; left_us > 0; left_us -= PAUSE_US) {
        unsigned long now = value("event");
        if (now != seen_event) {
            seen_event = now;
            event->handle = &device[value("event.gpu") % MAX];
            event->kind = 8;
            event->data = value("event.xid");
            return OK;
        }
        usleep(PAUSE_US);
    }
    hang();
    return TIMED_OUT;
}

int nvmlEventSetFree(void *set) {
    (void)set;
    return OK;
}
