import { createHash } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import type { StepResult } from "../../src/core/build-request.ts";
import {
  buildCacheType,
  parseBuildCache,
  parseBuildCacheManifest,
  writeBuildCache,
} from "../../src/image/build-cache.ts";
import { mediaTypes } from "../../src/image/manifest.ts";

const hex = fc.stringMatching(/^[0-9a-f]{64}$/);
const layer = fc.record({
  digest: hex.map((text) => `sha256:${text}`),
  diffId: hex.map((text) => `sha256:${text}`),
  sizeBytes: fc.nat(),
  mediaType: fc.constant("application/vnd.oci.image.layer.v1.tar+gzip"),
});
const steps = fc.array(
  fc.record({ keys: fc.uniqueArray(hex, { minLength: 1, maxLength: 2 }), layer: fc.option(layer) }),
  { maxLength: 20 },
);
const created = "2026-01-02T03:04:05.678Z";

const readBack = ({ manifest, config }: { manifest: Uint8Array; config: Uint8Array }): Map<string, StepResult> =>
  parseBuildCache(parseBuildCacheManifest(manifest, mediaTypes.ociManifest), config);

test("what is written is read back, whatever order it came in, under all keys that a step had", () => {
  fc.assert(
    fc.property(steps, (made) => {
      const results = made.flatMap(({ keys, layer: found }) =>
        keys.map((key): [string, StepResult] => [key, { layer: found, created, ...(keys.length > 1 ? { keys } : {}) }]),
      );
      const written = writeBuildCache(new Map(results));
      const read = readBack(written);
      expect([...read.keys()].sort()).toEqual(results.map(([key]) => key).sort());
      for (const [key, result] of results) expect(read.get(key)).toMatchObject({ layer: result.layer, created });
      expect(writeBuildCache(new Map(results.toReversed())).configDigest).toBe(written.configDigest);
      expect(writeBuildCache(read).configDigest).toBe(written.configDigest);
    }),
    { numRuns: 50 },
  );
});

test("a step that was found by one of its keys is exported with all of them, and no layer twice", () => {
  const keys = ["1".repeat(64), "2".repeat(64)];
  const found = { digest: `sha256:${"a".repeat(64)}`, diffId: `sha256:${"b".repeat(64)}`, sizeBytes: 1 };
  const made = { ...found, mediaType: "application/vnd.oci.image.layer.v1.tar+gzip" };
  const other = { layer: made, created };
  const written = writeBuildCache(
    new Map<string, StepResult>([
      ["1".repeat(64), { layer: made, created, keys, from: "r.example/x:1" }],
      ["3".repeat(64), other],
    ]),
  );
  expect(written.layers).toEqual([made]);
  expect([...readBack(written).keys()]).toEqual([...keys, "3".repeat(64)]);
  expect(Buffer.from(written.config).toString()).not.toContain("r.example");
});

test("the largest cache that is written can be read, and a larger one is not written", () => {
  const hash = (text: string): string => createHash("sha256").update(text).digest("hex");
  const made = (count: number) =>
    new Map<string, StepResult>(
      Array.from({ length: count }, (_, i) => {
        const [digest, diffId] = [`sha256:${hash(`digest ${String(i % 2_000)}`)}`, `sha256:${hash(String(i % 2_000))}`];
        const mediaType = "application/vnd.oci.image.layer.v1.tar+gzip";
        const keys = [hash(`one ${String(i)}`), hash(`other ${String(i)}`)];
        return [keys[0] ?? "", { layer: { digest, diffId, sizeBytes: 2 ** 34, mediaType }, created, keys }];
      }),
    );
  expect(readBack(writeBuildCache(made(4_000))).size).toBe(8_000);
  expect(() => writeBuildCache(made(4_001))).toThrow(/at most 2000 layers and 4000 steps/);
});

const manifest = (more: object, type: string = mediaTypes.ociManifest) =>
  parseBuildCacheManifest(
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        config: { mediaType: buildCacheType, digest: `sha256:${"c".repeat(64)}`, size: 10 },
        layers: [],
        ...more,
      }),
    ),
    type,
  );

test("a manifest of anything else is refused, and so is one that says two things", () => {
  expect(manifest({})).toMatchObject({ layers: [] });
  const config = { mediaType: buildCacheType, digest: `sha256:${"c".repeat(64)}`, size: 5 * 2 ** 20 };
  const layer = { mediaType: "text/html", digest: `sha256:${"c".repeat(64)}`, size: 1 };
  for (const [more, type, message] of [
    [{}, mediaTypes.ociIndex, /media type .*index/],
    [{}, mediaTypes.dockerManifest, /media type .*docker/],
    [{ mediaType: mediaTypes.ociIndex }, mediaTypes.ociManifest, /wrong at mediaType/],
    [{ manifests: [] }, mediaTypes.ociManifest, /wrong at manifests/],
    [
      { config: { ...config, mediaType: mediaTypes.dockerConfig } },
      mediaTypes.ociManifest,
      /no build cache of Berth's/,
    ],
    [{ config }, mediaTypes.ociManifest, /larger than 1 MiB/],
    [{ layers: [layer] }, mediaTypes.ociManifest, /"text\/html"/],
    [{ layers: new Array(2_001).fill(layer) }, mediaTypes.ociManifest, /wrong at layers/],
  ] as const) {
    expect(() => manifest(more, type)).toThrow(message);
  }
});
