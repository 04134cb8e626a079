import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { customAlphabet } from "nanoid";

/** A secret that is kept in a file which only root reads. */
export interface Secret {
  text: string;
  /** It was made just now. */
  fresh: boolean;
}

const random = customAlphabet("0123456789abcdefghijklmnopqrstuvwxyz", 40);

/** The operator's token: 206 random bits. */
export const newToken = (): string => `berth_${random()}`;

/** The key that encrypts credentials and signs internal requests: 256 random bits. */
export const newSecretKey = (): string => randomBytes(32).toString("base64url");

/** The file's secret, or a new one by `make`, kept there from now on with mode 0600. */
export function keepSecret(path: string, make: () => string): Secret {
  if (existsSync(path)) return { text: readFileSync(path, "utf8").trim(), fresh: false };
  const text = make();
  // Whole or not at all, also when the machine goes down in between.
  writeFileSync(`${path}.new`, `${text}\n`, { mode: 0o600, flush: true });
  renameSync(`${path}.new`, path);
  return { text, fresh: true };
}
