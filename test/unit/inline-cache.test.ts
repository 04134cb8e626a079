import { describe, expect, test } from "vitest";
import type { StepResult } from "../../src/core/build-request.ts";
import type { Layer } from "../../src/core/image.ts";
import { inlineCache } from "../../src/engine/build/inline-cache.ts";
import { parseBuildCacheManifest } from "../../src/image/build-cache.ts";
import { parseInlineCache, writeInlineCache } from "../../src/image/inline-cache.ts";
import { mediaTypes, parseConfig, parseManifest, writeImage } from "../../src/image/manifest.ts";

const hex = (fill: string): string => fill.repeat(64);
const layer = (fill: string): Layer => ({
  digest: `sha256:${hex(fill)}`,
  diffId: `sha256:${hex(fill)}`,
  sizeBytes: 10,
  mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
});
const created = "2026-01-02T03:04:05.000Z";
const [base, own, above, elsewhere] = [layer("a"), layer("b"), layer("c"), layer("d")] as const;
const results = new Map<string, StepResult>([
  [hex("1"), { layer: own, created, from: "r.example/x:1" }],
  [hex("2"), { layer: null, created }],
  [hex("3"), { layer: above, created, keys: [hex("4"), hex("3")] }],
  [hex("5"), { layer: elsewhere, created }],
]);
const layers = [base, own, above];
const config = { os: "linux", architecture: "amd64", created };

/** What a registry has of an image with such a config. */
const pushed = (more: object) => {
  const written = writeImage({ ...config, ...more }, layers);
  return { ...written, listed: parseBuildCacheManifest(written.manifest, mediaTypes.ociManifest) };
};

test("an image lists the steps that made its layers, under all their keys, and those that made none", () => {
  const { listed, config: bytes } = pushed(writeInlineCache(results, layers, null));
  const read = parseInlineCache(listed, bytes);
  expect([...read.keys()].sort()).toEqual([hex("1"), hex("2"), hex("3"), hex("4")]);
  expect(read.get(hex("1"))).toMatchObject({ layer: own, created });
  expect(read.get(hex("2"))).toMatchObject({ layer: null });
  expect(read.get(hex("4"))).toMatchObject({ layer: above, keys: [hex("3"), hex("4")] });
  // Where a step was found stays with who found it there; what other stages made is no part of the image.
  const text = Buffer.from(bytes).toString();
  expect(text).not.toContain("r.example");
  expect(text.split(hex("d"))).toHaveLength(1);
});

test("the image is one all the same, and always the same one", () => {
  const { manifest, config: bytes, image } = pushed(writeInlineCache(results, layers, null));
  expect(parseManifest(manifest, mediaTypes.ociManifest)).toMatchObject({ kind: "image" });
  expect(parseConfig(bytes)).toMatchObject(config);
  const reversed = new Map([...results].toReversed());
  expect(pushed(writeInlineCache(reversed, layers, null)).image.digest).toBe(image.digest);
  // With an epoch it does not tell when the steps ran.
  const later = new Map([...results].map(([key, result]) => [key, { ...result, created: "2027-01-01T00:00:00.000Z" }]));
  const dated = (of: typeof results) => pushed(writeInlineCache(of, layers, 1_700_000_000)).image.digest;
  expect(pushed(writeInlineCache(later, layers, null)).image.digest).not.toBe(image.digest);
  expect(dated(later)).toBe(dated(results));
});

describe("what a stranger's image says is checked", () => {
  const steps = [{ keys: [hex("1")], layer: 1, created }];
  test.each<[string, object, RegExp]>([
    ["nothing", {}, /does not say which steps made its layers/],
    ["a layer that it has not", { steps: [{ ...steps[0], layer: 3 }] }, /a layer that its manifest lacks/],
    [
      "a place below the first",
      { steps: [{ ...steps[0], layer: -1 }] },
      /wrong at berth\.buildcache\.v1\.steps\.0\.layer/,
    ],
    [
      "a key that is none",
      { steps: [{ ...steps[0], keys: ["../../x"] }] },
      /wrong at berth\.buildcache\.v1\.steps\.0\.keys/,
    ],
    ["too many steps", { steps: new Array(4_001).fill(steps[0]) }, /wrong at berth\.buildcache\.v1\.steps/],
    ["more than there is", { steps, more: 1 }, /wrong at berth\.buildcache\.v1/],
  ])("%s", (_, said, message) => {
    const { listed, config: bytes } = pushed(Object.keys(said).length === 0 ? {} : { "berth.buildcache.v1": said });
    expect(() => parseInlineCache(listed, bytes)).toThrow(message);
  });

  test("fewer layers than its manifest has", () => {
    const { listed } = pushed({});
    const other = Buffer.from(
      JSON.stringify({ rootfs: { type: "layers", diff_ids: [own.diffId] }, "berth.buildcache.v1": { steps } }),
    );
    expect(() => parseInlineCache(listed, other)).toThrow(/3 layers and its config 1/);
  });
});

test("an image is a cache when its build asks for it, by the option or as BuildKit is asked", () => {
  const log: string[] = [];
  const report = { line: (_step: number, _stream: string, text: string) => log.push(text) };
  const asked = (request: { inlineCache?: boolean; args?: Record<string, string> }, of = results) =>
    Object.keys(inlineCache({ args: {}, ...request }, { results: of, layers }, null, report));
  expect(asked({})).toEqual([]);
  expect(asked({ inlineCache: false, args: { BUILDKIT_INLINE_CACHE: "0" } })).toEqual([]);
  expect(asked({ inlineCache: true })).toEqual(["berth.buildcache.v1"]);
  expect(asked({ args: { BUILDKIT_INLINE_CACHE: "1" } })).toEqual(["berth.buildcache.v1"]);
  const many = new Map(
    Array.from({ length: 4_001 }, (_, n) => [String(n).padStart(64, "0"), { layer: null, created }] as const),
  );
  expect(log).toEqual([]);
  expect(asked({ inlineCache: true }, many)).toEqual([]);
  expect(log).toEqual([expect.stringMatching(/^#0 warning: the image is no cache\. .*4000 steps/)]);
});
