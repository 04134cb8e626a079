import { execFileSync } from "node:child_process";
import { join } from "node:path";

/** PEM files of a certificate for an address, of its key, and of the authority that signed it, made in a directory. */
export interface TlsFiles {
  certificate: string;
  key: string;
  authority: string;
}

export function makeTls(directory: string, address: string): TlsFiles {
  const path = (name: string) => join(directory, name);
  const files = { certificate: path("cert.pem"), key: path("key.pem"), authority: path("ca.pem") };
  const openssl = (...args: string[]) => execFileSync("openssl", args, { stdio: "pipe" });
  const newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  const authority = ["-keyout", path("ca-key.pem"), "-out", files.authority];
  openssl("req", "-x509", ...newKey, ...authority, "-subj", "/CN=Berth test authority");
  const signed = ["-CA", files.authority, "-CAkey", path("ca-key.pem"), "-subj", "/CN=berth"];
  const names = ["-addext", `subjectAltName=IP:${address}`, "-addext", "basicConstraints=CA:FALSE"];
  openssl("req", "-x509", ...newKey, "-keyout", files.key, "-out", files.certificate, ...signed, ...names);
  return files;
}
