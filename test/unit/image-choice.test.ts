import { describe, expect, test } from "vitest";
import { chooseImage, projectReference } from "../../src/core/image-choice.ts";
import { signalNumber } from "../../src/core/signals.ts";
import { unsafePlaces } from "../../src/routes/json-body.ts";

const nothing = { own: false, ownDigest: null, hubDigest: null };

describe("what a reference means to a project", () => {
  test("its own name in front is itself; another's is Docker Hub's", () => {
    expect(projectReference("acme/web:1", "acme").repository).toBe("web");
    expect(projectReference("other/web:1", "acme").repository).toBe("other/web");
    expect(projectReference("ghcr.io/acme/web", "acme")).toMatchObject({ registry: "ghcr.io", repository: "acme/web" });
  });

  test("a repository of its own is never looked for elsewhere", () => {
    const web = projectReference("web:2", "acme");
    expect(() => chooseImage(web, { ...nothing, own: true, hubDigest: "d" }, "always")).toThrow(
      "The project has no image web:2.",
    );
    expect(chooseImage(web, { own: true, ownDigest: "d", hubDigest: "x" }, "always")).toEqual({
      reference: "web:2",
      digest: "d",
    });
  });

  test("others are pulled when they are missing, always, or never", () => {
    const debian = projectReference("debian", "acme");
    const name = "docker.io/library/debian:latest";
    expect(chooseImage(debian, nothing, "missing")).toEqual({ reference: name, digest: null });
    expect(chooseImage(debian, { ...nothing, hubDigest: "d" }, "missing")).toEqual({ reference: name, digest: "d" });
    expect(chooseImage(debian, { ...nothing, hubDigest: "d" }, "always")).toEqual({ reference: name, digest: null });
    expect(() => chooseImage(debian, nothing, "never")).toThrow("it is not to be pulled");
  });
});

test.each([
  ["SIGTERM", 15],
  ["hup", 1],
  ["9", 9],
  ["64", 64],
  ["0", null],
  ["65", null],
  ["SIGNOPE", null],
  ["__proto__", null],
  ["constructor", null],
])("signal %s is %s", (text, number) => {
  expect(signalNumber(text)).toBe(number);
});

test("unsafe places are found at any depth, without recursion", () => {
  expect(unsafePlaces({ a: ["ok", { "b/c": "x\0" }] })).toMatchObject([{ pointer: "/a/1/b~1c" }]);
  let deep: unknown = 1;
  for (let n = 0; n < 200_000; n++) deep = [deep];
  expect(unsafePlaces(deep)).toMatchObject([{ detail: "Nested deeper than 32 levels." }]);
  expect(unsafePlaces(JSON.parse('{"a":{"__proto__":1}}'))).toMatchObject([{ pointer: "/a/__proto__" }]);
});
