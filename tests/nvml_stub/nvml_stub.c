/* A libnvidia-ml.so.1 without a GPU. It answers from a text file that is read again at every call, so that a test can
 * move memory, break a GPU and mend it while the real pynvml is looking. $NVML_STUB names the file; "name value" lines:
 *
 *   init 9                nvmlInit fails with error 9 (0 or no line: it works)
 *   count 2               GPUs; 0.* is the first one
 *   0.name NVIDIA H200    0.uuid GPU-...    0.total, 0.used, 0.reserved: bytes
 *   0.power, 0.limit: milliwatt    0.temperature: degrees    0.utilization: percent
 *   0.processes 77:1073741824 78:NA
 *   0.mig 2               MIG slices 0/0.* and 0/1.*
 *   0.fault 15            every question about the GPU fails with error 15
 *
 * A value !N is error N for that question alone; so is a value that is not there, with error 3 (not supported).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { TEXT = 256, MOST_GPUS = 16, MOST_SLICES = 7 };

typedef unsigned long long bytes;
typedef struct { char key[16]; } device;
typedef struct { bytes total, free, used; } memory_v1;
typedef struct { unsigned version; bytes total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; bytes used; unsigned gpu_instance, compute_instance; } process;
typedef struct { unsigned gpu, memory; } utilization;

static int opened;
static device devices[MOST_GPUS][MOST_SLICES + 1];

/* The value of a name: 0 and its text, or an error. */
static int find(const char *name, char *value) {
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[TEXT];
    size_t length = strlen(name);
    int result = NOT_SUPPORTED;
    while (file && result == NOT_SUPPORTED && fgets(line, sizeof line, file)) {
        if (strncmp(line, name, length) || line[length] != ' ') continue;
        strcpy(value, line + length + 1);
        value[strcspn(value, "\n")] = 0;
        result = value[0] == '!' ? atoi(value + 1) : OK;
    }
    if (file) fclose(file);
    return result;
}

static int number(const char *name, bytes *value) {
    char text[TEXT];
    int result = find(name, text);
    if (result == OK) *value = strtoull(text, NULL, 10);
    return result;
}

static int ask(device *of, const char *what, char *value) {
    char name[TEXT];
    if (!opened) return UNINITIALIZED;
    snprintf(name, sizeof name, "%s.fault", of->key);
    if (find(name, value) == OK) return atoi(value);
    snprintf(name, sizeof name, "%s.%s", of->key, what);
    return find(name, value);
}

static int ask_number(device *of, const char *what, bytes *value) {
    char text[TEXT];
    int result = ask(of, what, text);
    if (result == OK) *value = strtoull(text, NULL, 10);
    return result;
}

static int ask_unsigned(device *of, const char *what, unsigned *value) {
    bytes wide = 0;
    int result = ask_number(of, what, &wide);
    *value = (unsigned)wide;
    return result;
}

static int ask_text(device *of, const char *what, char *value, unsigned size) {
    char text[TEXT];
    int result = ask(of, what, text);
    if (result == OK) snprintf(value, size, "%s", text);
    return result;
}

EXPORT int nvmlInitWithFlags(unsigned flags) {
    bytes result = OK;
    (void)flags;
    if (!getenv("NVML_STUB")) return 9;
    number("init", &result);
    opened += result == OK;
    return (int)result;
}

EXPORT int nvmlShutdown(void) {
    if (!opened) return UNINITIALIZED;
    opened--;
    return OK;
}

EXPORT const char *nvmlErrorString(int result) {
    switch (result) {
        case OK: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case NOT_SUPPORTED: return "Not Supported";
        case 4: return "Insufficient Permissions";
        case 9: return "Driver Not Loaded";
        case 13: return "Function Not Found";
        case 15: return "GPU is lost";
        default: return "Unknown Error";
    }
}

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    bytes value = 0;
    int result = opened ? number("count", &value) : UNINITIALIZED;
    *count = (unsigned)value;
    return result;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **handle) {
    char text[TEXT];
    if (index >= MOST_GPUS) return INVALID_ARGUMENT;
    *handle = &devices[index][0];
    snprintf((*handle)->key, sizeof (*handle)->key, "%u", index);
    return ask(*handle, "uuid", text) == 15 ? 15 : OK;
}

EXPORT int nvmlDeviceGetMigMode(device *of, unsigned *current, unsigned *pending) {
    unsigned slices;
    int result = ask_unsigned(of, "mig", &slices);
    *current = *pending = slices > 0;
    return result;
}

EXPORT int nvmlDeviceGetMaxMigDeviceCount(device *of, unsigned *count) {
    *count = MOST_SLICES;
    return of ? OK : INVALID_ARGUMENT;
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(device *of, unsigned index, device **handle) {
    unsigned slices;
    int result = ask_unsigned(of, "mig", &slices);
    if (result != OK || index >= slices) return NOT_FOUND;
    *handle = &devices[atoi(of->key)][index + 1];
    snprintf((*handle)->key, sizeof (*handle)->key, "%d/%u", atoi(of->key), index);
    return OK;
}

EXPORT int nvmlDeviceGetName(device *of, char *name, unsigned size) { return ask_text(of, "name", name, size); }

EXPORT int nvmlDeviceGetUUID(device *of, char *uuid, unsigned size) { return ask_text(of, "uuid", uuid, size); }

EXPORT int nvmlDeviceGetMemoryInfo_v2(device *of, memory_v2 *memory) {
    bytes free_of_charge = 0;
    int result = number("memory_v2", &free_of_charge);
    if (result != OK && result != NOT_SUPPORTED) return result;
    if ((result = ask_number(of, "total", &memory->total)) || (result = ask_number(of, "used", &memory->used)))
        return result;
    memory->reserved = 0;
    ask_number(of, "reserved", &memory->reserved);
    memory->free = memory->total - memory->used - memory->reserved;
    return OK;
}

EXPORT int nvmlDeviceGetMemoryInfo(device *of, memory_v1 *memory) {
    bytes reserved = 0;
    int result;
    if ((result = ask_number(of, "total", &memory->total)) || (result = ask_number(of, "used", &memory->used)))
        return result;
    ask_number(of, "reserved", &reserved);
    memory->used += reserved;
    memory->free = memory->total - memory->used;
    return OK;
}

EXPORT int nvmlDeviceGetUtilizationRates(device *of, utilization *rates) {
    rates->memory = 0;
    return ask_unsigned(of, "utilization", &rates->gpu);
}

EXPORT int nvmlDeviceGetPowerUsage(device *of, unsigned *milliwatt) { return ask_unsigned(of, "power", milliwatt); }

EXPORT int nvmlDeviceGetEnforcedPowerLimit(device *of, unsigned *milliwatt) { return ask_unsigned(of, "limit", milliwatt); }

EXPORT int nvmlDeviceGetTemperature(device *of, int sensor, unsigned *degrees) {
    return sensor ? INVALID_ARGUMENT : ask_unsigned(of, "temperature", degrees);
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(device *of, unsigned *count, process *list) {
    char text[TEXT], *part, *colon;
    unsigned room = *count, found = 0;
    int result = ask(of, "processes", text);
    if (result != OK) return result;
    for (part = strtok(text, " "); part; part = strtok(NULL, " ")) {
        if (list && found < room && (colon = strchr(part, ':'))) {
            process entry = {(unsigned)atoi(part), strtoull(colon + 1, NULL, 10), ~0u, ~0u};
            if (!strcmp(colon + 1, "NA")) entry.used = ~0ull;
            list[found] = entry;
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}
