import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Layer } from "../../src/core/image.ts";
import { formatPlatform, type Platform, parsePlatform, platformFit } from "../../src/core/platform.ts";
import { digestOf } from "../../src/image/digest.ts";
import {
  type ImageIndex,
  type ImageManifest,
  joinImage,
  mediaTypes,
  parseConfig,
  parseManifest,
  selectManifest,
  writeImage,
} from "../../src/image/manifest.ts";

const digest = (fill: string): string => `sha256:${fill.repeat(64)}`;
const layer: Layer = {
  digest: digest("a"),
  diffId: digest("b"),
  sizeBytes: 10,
  mediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip",
};
const amd64 = { os: "linux", architecture: "amd64" };
const platform = (text: string): Platform => {
  const parsed = parsePlatform(text, amd64);
  if (parsed === null) throw new Error(`${text} is no platform`);
  return parsed;
};

const manifest = (more: object = {}): object => ({
  schemaVersion: 2,
  mediaType: mediaTypes.ociManifest,
  config: { mediaType: mediaTypes.ociConfig, digest: digest("c"), size: 5 },
  layers: [{ mediaType: "application/vnd.oci.image.layer.v1.tar+gzip", digest: digest("a"), size: 10 }],
  ...more,
});
const index = (manifests: object[], more: object = {}): object => ({
  schemaVersion: 2,
  mediaType: mediaTypes.ociIndex,
  manifests,
  ...more,
});
const child = (fill: string, made?: object): object => ({
  mediaType: mediaTypes.ociManifest,
  digest: digest(fill),
  size: 7,
  ...(made === undefined ? {} : { platform: made }),
});
const parse = (document: unknown, type: string = mediaTypes.ociManifest): ImageManifest | ImageIndex =>
  parseManifest(Buffer.from(JSON.stringify(document)), type);

describe("manifests", () => {
  test("an image that was written is read back the same", () => {
    const written = writeImage(
      { ...amd64, config: { Cmd: ["/x"], Env: ["A=1"] }, history: [{ created_by: "RUN x" }] },
      [layer],
    );
    const parsed = parseManifest(written.manifest, mediaTypes.ociManifest) as ImageManifest;
    expect(parsed.config.digest).toBe(digestOf(written.config));
    const joined = joinImage(parsed, digestOf(written.manifest), parseConfig(written.config), amd64, "x");
    expect(joined).toEqual(written.image);
    expect(joined.layers[0]?.mediaType).toBe("application/vnd.oci.image.layer.v1.tar+gzip");
  });

  test("Docker's media types, a charset and a document without its own type are taken", () => {
    const docker = manifest({
      mediaType: mediaTypes.dockerManifest,
      config: { mediaType: mediaTypes.dockerConfig, digest: digest("c"), size: 5 },
      layers: [{ mediaType: layer.mediaType, digest: digest("a"), size: 10 }],
    });
    expect(parse(docker, `${mediaTypes.dockerManifest}; charset=utf-8`).kind).toBe("image");
    expect(parse(manifest({ mediaType: undefined })).kind).toBe("image");
  });

  test.each<[string, unknown, string?]>([
    ["served as another type than it says", manifest({ mediaType: mediaTypes.ociIndex })],
    ["an index served as a manifest", index([child("d", amd64)], { mediaType: undefined })],
    ["a manifest served as an index", manifest({ mediaType: undefined }), mediaTypes.ociIndex],
    ["both at once", manifest({ manifests: [child("d", amd64)] })],
    ["both at once, as an index", index([child("d", amd64)], { layers: [], config: {} }), mediaTypes.ociIndex],
    ["an unknown type", manifest({ mediaType: "text/html" }), "text/html"],
    ["schema 1", manifest({ schemaVersion: 1 })],
    [
      "an artifact's config",
      manifest({ config: { mediaType: "application/vnd.cncf.helm.config.v1+json", digest: digest("c"), size: 1 } }),
    ],
    [
      "a foreign layer",
      manifest({
        layers: [
          { mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", digest: digest("a"), size: 1 },
        ],
      }),
    ],
    [
      "a digest that is a path",
      manifest({ layers: [{ mediaType: layer.mediaType, digest: "../../etc/passwd", size: 1 }] }),
    ],
    ["a negative size", manifest({ config: { mediaType: mediaTypes.ociConfig, digest: digest("c"), size: -1 } })],
    ["a huge config", manifest({ config: { mediaType: mediaTypes.ociConfig, digest: digest("c"), size: 2 ** 40 } })],
    [
      "too many layers",
      manifest({
        layers: Array.from({ length: 128 }, () => ({ mediaType: layer.mediaType, digest: digest("a"), size: 1 })),
      }),
    ],
    ["no object", ["x"]],
    ["null", null],
  ])("refuses %s", (_, document, type) => {
    expect(() => parse(document, type)).toThrow(expect.objectContaining({ code: "invalid_image" }));
  });

  test("refuses what is not JSON or not UTF-8", () => {
    for (const bytes of [Buffer.from("{"), Buffer.from([0x7b, 0xff, 0x7d]), Buffer.alloc(5 << 20, 0x20)]) {
      expect(() => parseManifest(bytes, mediaTypes.ociManifest)).toThrow(
        expect.objectContaining({ code: "invalid_image" }),
      );
    }
  });

  test("any JSON is a manifest or an error of ours", () => {
    fc.assert(
      fc.property(fc.json(), fc.constantFrom(...Object.values(mediaTypes)), (text, type) => {
        try {
          parseManifest(Buffer.from(text), type);
        } catch (error) {
          expect(error).toMatchObject({ name: "BerthError" });
        }
      }),
    );
  });
});

describe("indexes", () => {
  const choose = (platforms: (object | undefined)[], wanted: string): string =>
    selectManifest(
      parse(index(platforms.map((platform, i) => child(String(i), platform))), mediaTypes.ociIndex) as ImageIndex,
      platform(wanted),
      "x",
    ).digest;

  test("give the platform, the exact variant before any", () => {
    const arm = { os: "linux", architecture: "arm" };
    const list = [
      undefined,
      { ...arm, variant: "v6" },
      { ...arm, variant: "v7" },
      { os: "linux", architecture: "arm64", variant: "v8" },
      amd64,
    ];
    expect(choose(list, "linux/arm/v7")).toBe(digest("2"));
    expect(choose(list, "linux/arm")).toBe(digest("1"));
    expect(choose(list, "linux/arm64")).toBe(digest("3"));
    expect(choose(list, "linux/amd64")).toBe(digest("4"));
    expect(() => choose(list, "linux/arm/v5")).toThrow(expect.objectContaining({ code: "image_not_found" }));
    expect(() => choose(list, "windows/amd64")).toThrow("only for linux/arm/v6");
  });

  test("can't point to another index", () => {
    const nested = index([{ ...child("1", amd64), mediaType: mediaTypes.ociIndex }]);
    expect(() => selectManifest(parse(nested, mediaTypes.ociIndex) as ImageIndex, amd64, "x")).toThrow(
      expect.objectContaining({ code: "invalid_image" }),
    );
  });
});

describe("configs", () => {
  const config = (more: object = {}): Buffer =>
    Buffer.from(JSON.stringify({ ...amd64, rootfs: { type: "layers", diff_ids: [digest("b")] }, ...more }));

  test("keep what they don't know and lose nulls", () => {
    const parsed = parseConfig(
      config({ "docker.version": "1", config: { Env: null, Cmd: ["a"], ArgsEscaped: true }, history: null }),
    );
    expect(parsed).toEqual({
      ...amd64,
      "docker.version": "1",
      config: { Cmd: ["a"], ArgsEscaped: true },
      rootfs: { type: "layers", diff_ids: [digest("b")] },
    });
  });

  test.each<[string, object]>([
    ["a diff id that is none", { rootfs: { type: "layers", diff_ids: ["x"] } }],
    ["no rootfs", { rootfs: undefined }],
    ["a command that is text", { config: { Cmd: "sh" } }],
    ["labels that are no text", { config: { Labels: { a: 1 } } }],
    ["a NUL in a variable", { config: { Env: ["A=b\0c"] } }],
    ["a NUL in a field that it doesn't know", { more: [{ "a\0": 1 }] }],
    ["half a character", { author: "\ud800" }],
  ])("refuse %s", (_, more) => {
    expect(() => parseConfig(config(more))).toThrow(expect.objectContaining({ code: "invalid_image" }));
  });

  test("must fit the manifest and the platform", () => {
    const parsed = parse(manifest()) as ImageManifest;
    const none = parseConfig(config({ rootfs: { type: "layers", diff_ids: [] } }));
    expect(() => joinImage(parsed, digest("d"), none, amd64, "x")).toThrow("1 layers and its config 0");
    const windows = parseConfig(config({ os: "windows" }));
    expect(() => joinImage(parsed, digest("d"), windows, amd64, "x")).toThrow("only for windows/amd64");
  });
});

test("platforms are parsed and written", () => {
  for (const text of ["linux/amd64", "linux/arm/v7"]) expect(formatPlatform(platform(text))).toBe(text);
  for (const [text, meant] of [
    ["linux", "linux/amd64"],
    ["aarch64", "linux/arm64"],
    ["Linux/x86_64", "linux/amd64"],
    ["linux/arm64/v8", "linux/arm64"],
  ] as const) {
    expect(formatPlatform(platform(text))).toBe(meant);
  }
  for (const text of ["", "linux/amd64/v1/x", "linux/", "linux/a b", `linux/${"x".repeat(33)}`]) {
    expect(parsePlatform(text, amd64)).toBeNull();
  }
  expect(platformFit(amd64, { os: "linux", architecture: "arm64" })).toBe(0);
});
