// A load of a matrix out of shared memory, as mma.sync wants it (ldmatrix).

// Four matrices of eight rows of 16 bytes; each thread gives the address of one row.
__device__ __forceinline__ void load_matrix(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
