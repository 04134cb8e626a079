import { describe, expect, test } from "vitest";
import { newId } from "../../src/core/ids.ts";
import {
  agentKey,
  databasePassword,
  formatCredential,
  hostKey,
  identityKey,
  joinKey,
  open,
  parseCredential,
  sameSecret,
  seal,
} from "../../src/core/keys.ts";

const key = "a key of the tests that is long enough";

describe("sealed credentials", () => {
  test("open with the same key and purpose only", () => {
    const sealed = seal(key, "pull:job_1", "hunter2");
    expect(open(key, "pull:job_1", sealed)).toBe("hunter2");
    expect(() => open(key, "pull:job_2", sealed)).toThrow("can't be decrypted");
    expect(() => open(`${key}.`, "pull:job_1", sealed)).toThrow("can't be decrypted");
  });

  test("are different each time, and no changed bit opens", () => {
    const sealed = seal(key, "p", "hunter2");
    expect(seal(key, "p", "hunter2")).not.toBe(sealed);
    const bytes = Buffer.from(sealed, "base64url");
    for (let i = 0; i < bytes.length; i++) {
      const changed = Buffer.from(bytes);
      changed[i] = (changed[i] ?? 0) ^ 1;
      expect(() => open(key, "p", changed.toString("base64url"))).toThrow("can't be decrypted");
    }
    expect(() => open(key, "p", "")).toThrow("can't be decrypted");
  });
});

test("the agent's key tells nothing of the secret key, and secrets of any length compare", () => {
  expect(agentKey(key)).not.toContain(key);
  expect(agentKey(key)).toBe(agentKey(key));
  expect(agentKey(`${key}.`)).not.toBe(agentKey(key));
  expect(sameSecret("a", "a")).toBe(true);
  expect(sameSecret("a", "ab")).toBe(false);
});

describe("keys that follow from the secret key", () => {
  const secret = "a secret key of the tests, long enough";
  const [one, two] = [newId("host"), newId("host")];

  test("differ by what they are for and whose they are, and are the same every time", () => {
    const keys = [
      hostKey(secret, one),
      hostKey(secret, two),
      hostKey("another secret key, which is long enough", one),
      agentKey(hostKey(secret, one)),
      agentKey(hostKey(secret, two)),
      joinKey(secret, one),
      databasePassword(hostKey(secret, one)),
    ];
    expect(new Set(keys).size).toBe(keys.length);
    for (const key of keys) expect(key).toMatch(/^[\w-]{43}$/);
    expect(hostKey(secret, one)).toBe(keys[0]);
  });

  test("belong to hosts and join tokens alone", () => {
    const token = newId("joinToken");
    expect(identityKey(secret, one)).toBe(hostKey(secret, one));
    expect(identityKey(secret, token)).toBe(joinKey(secret, token));
    for (const id of ["", "hst_", newId("token"), `${one}x`, "hst_../../etc"])
      expect(identityKey(secret, id)).toBeNull();
  });

  test("a credential is read as it was written, and nothing else is one", () => {
    const credential = { id: one, key: hostKey(secret, one) };
    const text = formatCredential(credential);
    expect(parseCredential(text)).toEqual(credential);
    for (const bad of ["", one, `${text}x`, text.slice(0, -1), ` ${text}`, text.replace(".", ":"), `${text}\n`]) {
      expect(parseCredential(bad), JSON.stringify(bad)).toBeNull();
    }
  });
});
