import { describe, expect, test } from "vitest";
import { agentKey, open, sameSecret, seal } from "../../src/core/keys.ts";

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
