/**
 * A container's first instruction, made visible: a static x86-64 program of 229 bytes that asks the kernel for the time
 * (clock_gettime, CLOCK_REALTIME), prints it in nanoseconds and ends, or, given an argument, pauses for ever. It has no
 * loader, no library and no start-up code, so that the time is the sandbox's and not the program's.
 *
 *   mov eax,228; xor edi,edi; lea rsi,[rsp-64]; syscall          clock_gettime
 *   rax = sec * 1e9 + nsec; digits backwards from [rsp-100]; write(1, …)
 *   cmp [rsp],1; jg pause; exit(0); pause: mov eax,34; syscall; jmp pause
 */
const code = Buffer.from(
  "uOQAAAAx/0iNdCTADwVIi0QkwEhpwADKmjtIA0QkyEiNfCScxgcKuQoAAAAx0kj38YDCMEj/z4gXSIXAde5Iif5IjVQknUgp8r8BAAAAuAEAAAAPBYM8JAF/Cbg8AAAAMf8PBbgiAAAADwXr9w==",
  "base64",
);

/** The program as an ELF file: header, one loadable segment, code. */
export function stampProgram(): Buffer {
  const base = 0x400000n;
  const headers = Buffer.alloc(64 + 56);
  headers.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1], 0);
  headers.writeUInt16LE(2, 16); // ET_EXEC
  headers.writeUInt16LE(62, 18); // EM_X86_64
  headers.writeUInt32LE(1, 20);
  headers.writeBigUInt64LE(base + BigInt(headers.length), 24); // entry
  headers.writeBigUInt64LE(64n, 32); // program headers
  headers.writeUInt16LE(64, 52);
  headers.writeUInt16LE(56, 54);
  headers.writeUInt16LE(1, 56);
  const size = BigInt(headers.length + code.length);
  headers.writeUInt32LE(1, 64); // PT_LOAD
  headers.writeUInt32LE(5, 68); // r-x
  headers.writeBigUInt64LE(base, 80);
  headers.writeBigUInt64LE(base, 88);
  headers.writeBigUInt64LE(size, 96);
  headers.writeBigUInt64LE(size, 104);
  headers.writeBigUInt64LE(0x1000n, 112);
  return Buffer.concat([headers, code]);
}
