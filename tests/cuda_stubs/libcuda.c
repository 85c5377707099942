// Stands for the CUDA driver where there is no GPU: libraries that need it load, and every call fails with "no device".
int cuCtxGetCurrent(){return 100;}
int cuCtxSetCurrent(){return 100;}
int cuDeviceGetAttribute(){return 100;}
int cuDevicePrimaryCtxRetain(){return 100;}
int cuGetErrorString(){return 100;}
int cuGetProcAddress_v2(){return 100;}
int cuMemAddressFree(){return 100;}
int cuMemAddressReserve(){return 100;}
int cuMemCreate(){return 100;}
int cuMemGetAllocationGranularity(){return 100;}
int cuMemMap(){return 100;}
int cuMemRelease(){return 100;}
int cuMemSetAccess(){return 100;}
int cuMemUnmap(){return 100;}
int cuPointerGetAttribute(){return 100;}
int cuTensorMapEncodeTiled(){return 100;}
