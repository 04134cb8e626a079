import { createCipheriv, createDecipheriv, createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { BerthError } from "./errors.ts";
import { isId } from "./ids.ts";

/** 256 bits, base64url, that follow from a key and reveal neither it nor what else follows from it. */
const derive = (key: string, purpose: string) => createHmac("sha256", key).update(purpose).digest("base64url");

/** What a host proves itself with to the API. It opens nothing of another host. */
export function hostKey(secretKey: string, hostId: string): string {
  return derive(secretKey, `berth host v1 ${hostId}`);
}

/** What the API proves itself with to a host's agent; it follows from that host's key and opens that agent alone. */
export function agentKey(hostKey: string): string {
  return derive(hostKey, "berth agent v1");
}

/** `<id>.<key>`: an id and the secret that belongs to it, as hosts and join tokens are shown to the API. */
export interface Credential {
  id: string;
  key: string;
}

export function formatCredential({ id, key }: Credential): string {
  return `${id}.${key}`;
}

/** The credential that the text is; null when it has not its form. */
export function parseCredential(text: string): Credential | null {
  const [, id, key] = /^([a-z]{3}_[0-9a-z]{20})\.([\w-]{43})$/.exec(text) ?? [];
  return id === undefined || key === undefined ? null : { id, key };
}

/** The secret of a join token: nothing of it is stored. */
export function joinKey(secretKey: string, tokenId: string): string {
  return derive(secretKey, `berth join v1 ${tokenId}`);
}

/** With what a host logs in to the database, as itself (db/host-login.ts); it follows from that host's key. */
export function databasePassword(hostKey: string): string {
  return derive(hostKey, "berth database v1");
}

/** The key of who names itself to the API: a host or a join token; null: neither. That it is known has yet to be seen. */
export function identityKey(secretKey: string, id: string): string | null {
  if (isId("host", id)) return hostKey(secretKey, id);
  return isId("joinToken", id) ? joinKey(secretKey, id) : null;
}

/** Whether two secrets are equal, in a time that does not tell where they differ. */
export function sameSecret(a: string, b: string): boolean {
  return timingSafeEqual(createHash("sha256").update(a).digest(), createHash("sha256").update(b).digest());
}

const sealKey = (secretKey: string) => createHmac("sha256", secretKey).update("berth seal v1").digest();

/**
 * Encrypts a credential for the database: AES-256-GCM, base64url of nonce (12 bytes), tag (16) and ciphertext.
 * `purpose` is authenticated, so that a value can't be moved to where it means something else.
 */
export function seal(secretKey: string, purpose: string, text: string): string {
  const nonce = randomBytes(12);
  const cipher = createCipheriv("aes-256-gcm", sealKey(secretKey), nonce).setAAD(Buffer.from(purpose));
  const body = Buffer.concat([cipher.update(text, "utf8"), cipher.final()]);
  return Buffer.concat([nonce, cipher.getAuthTag(), body]).toString("base64url");
}

/** What `seal` was given. @throws BerthError `internal` when the key, the purpose or the text is another. */
export function open(secretKey: string, purpose: string, sealed: string): string {
  const bytes = Buffer.from(sealed, "base64url");
  try {
    const decipher = createDecipheriv("aes-256-gcm", sealKey(secretKey), bytes.subarray(0, 12), { authTagLength: 16 })
      .setAAD(Buffer.from(purpose))
      .setAuthTag(bytes.subarray(12, 28));
    return Buffer.concat([decipher.update(bytes.subarray(28)), decipher.final()]).toString("utf8");
  } catch (cause) {
    throw new BerthError("internal", "A stored credential can't be decrypted with this BERTH_SECRET_KEY.", { cause });
  }
}

/** What is kept of a token: its SHA-256. Tokens are 200 random bits, so that no slow hash is needed. */
export function tokenHash(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}
