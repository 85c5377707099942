// Stands for NVML where there is no GPU: it reports one H200, from which vLLM chooses its CUDA platform.
#include <string.h>
typedef unsigned long long u64;
int nvmlInit_v2(void){return 0;} int nvmlInit(void){return 0;} int nvmlInitWithFlags(unsigned f){return 0;} int nvmlShutdown(void){return 0;}
int nvmlDeviceGetCount_v2(unsigned*c){*c=1;return 0;} int nvmlDeviceGetCount(unsigned*c){*c=1;return 0;}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void**h){*h=(void*)1;return 0;} int nvmlDeviceGetHandleByUUID(const char*u, void**h){*h=(void*)1;return 0;}
int nvmlDeviceGetHandleByPciBusId_v2(const char*u, void**h){*h=(void*)1;return 0;}
int nvmlDeviceGetName(void*h,char*n,unsigned l){strncpy(n,"NVIDIA H200",l);return 0;}
int nvmlDeviceGetUUID(void*h,char*n,unsigned l){strncpy(n,"GPU-00000000-0000-0000-0000-000000000001",l);return 0;}
int nvmlDeviceGetCudaComputeCapability(void*h,int*a,int*b){*a=9;*b=0;return 0;}
struct m1{u64 t,f,u;}; int nvmlDeviceGetMemoryInfo(void*h,struct m1*m){m->t=143771ull<<20;m->f=143000ull<<20;m->u=771ull<<20;return 0;}
struct m2{unsigned v;u64 t,r,f,u;}; int nvmlDeviceGetMemoryInfo_v2(void*h,struct m2*m){m->t=143771ull<<20;m->r=0;m->f=143000ull<<20;m->u=771ull<<20;return 0;}
int nvmlSystemGetDriverVersion(char*n,unsigned l){strncpy(n,"580.159.04",l);return 0;}
int nvmlSystemGetCudaDriverVersion(int*v){*v=13000;return 0;} int nvmlSystemGetCudaDriverVersion_v2(int*v){*v=13000;return 0;}
const char* nvmlErrorString(int r){return "stub";}
int nvmlDeviceGetP2PStatus(void*a,void*b,int c,int*s){*s=0;return 0;}
int nvmlDeviceGetIndex(void*h,unsigned*i){*i=0;return 0;}
int nvmlDeviceGetMigMode(void*h,unsigned*a,unsigned*b){*a=0;*b=0;return 0;}
