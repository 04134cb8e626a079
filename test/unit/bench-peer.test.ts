import { describe, expect, test } from "vitest";
import { choosePackages, packageIndex, parseRelease, parseSuite } from "../bench/peer-index.ts";

// What `npm run bench:peer` unpacks: chosen out of what a suite of Debian says it has.

const digest = (letter: string) => letter.repeat(64);

const release = `Origin: Debian
Suite: unstable
Codename: sid
Date: Fri, 30 Oct 2026 08:08:01 UTC
Valid-Until: Fri, 06 Nov 2026 08:08:01 UTC
MD5Sum:
 0123456789abcdef0123456789abcdef  111 main/binary-amd64/Packages.gz
SHA256:
 ${digest("a")}      111 main/binary-amd64/Packages
 ${digest("b")} 15001303 main/binary-amd64/Packages.gz
 ${digest("c")}       11 main/binary-arm64/Packages.gz
`;

const paragraph = (name: string, more: Record<string, string> = {}) =>
  Object.entries({
    Package: name,
    Version: "1.0+ds1-2",
    Description: "text\n Package: runc\n Filename: pool/main/x.deb",
    Filename: `pool/main/d/${name}/${name}_1.0+ds1-2_amd64.deb`,
    SHA256: digest("d"),
    ...more,
  })
    .map(([field, value]) => `${field}: ${value}`)
    .join("\n");

const needed = ["docker.io", "containerd", "runc", "libc6", "libseccomp2"];
const index = (...paragraphs: string[]) => `${paragraphs.join("\n\n")}\n`;

test.each(["trixie", "sid", "bookworm-backports"])("%s is a suite's name", (name) => {
  expect(parseSuite(name)).toBe(name);
});

test.each(["", "..", "../sid", "sid/", "-sid", "Sid", "sid\n", "sid --x"])("%j is none", (name) => {
  expect(parseSuite(name)).toBeNull();
});

describe("a release", () => {
  test("leads to the index of an architecture by its SHA-256 digest", () => {
    const parsed = parseRelease(release, "sid");
    expect(parsed).toMatchObject({
      date: "Fri, 30 Oct 2026 08:08:01 UTC",
      validUntil: Date.UTC(2026, 10, 6, 8, 8, 1),
    });
    expect(packageIndex(parsed, "amd64")).toEqual({ path: "main/binary-amd64/Packages.gz", sha256: digest("b") });
    expect(() => packageIndex(parsed, "riscv64")).toThrow("no main/binary-riscv64/Packages.gz");
  });

  test("may be asked for by its suite, and is not another's", () => {
    expect(parseRelease(release, "unstable").indexes).toHaveLength(3);
    expect(() => parseRelease(release, "trixie")).toThrow("answers for trixie with sid");
  });

  test("of a stable suite is valid without an end", () => {
    expect(parseRelease(release.replace(/^Valid-Until.*\n/m, ""), "sid").validUntil).toBeNull();
  });
});

describe("packages", () => {
  test("are the engine's, with the client and buildx where they are packages of their own", () => {
    const others = ["bash", "docker.io-doc", "golang-docker"].map((name) => paragraph(name));
    const engine = [...needed, "docker-buildx"].map((name) => paragraph(name));
    const chosen = choosePackages(index(...others, ...engine));
    expect(chosen.map(({ name }) => name)).toEqual([...needed, "docker-buildx"]);
    expect(chosen[0]).toEqual({
      name: "docker.io",
      version: "1.0+ds1-2",
      path: "pool/main/d/docker.io/docker.io_1.0+ds1-2_amd64.deb",
      sha256: digest("d"),
    });
  });

  test("that are needed are there, once", () => {
    const all = needed.map((name) => paragraph(name));
    expect(() => choosePackages(index(...all.slice(1)))).toThrow("has no docker.io");
    expect(() => choosePackages(index(...all, paragraph("runc")))).toThrow("has runc 2 times");
  });

  test.each([
    { Filename: "../../etc/x.deb" },
    { Filename: "pool/../x.deb" },
    { Filename: "pool//x.deb" },
    { Filename: "pool/x.deb?y" },
    { SHA256: "" },
    { SHA256: digest("D") },
  ])("whose file is %j are refused", (more) => {
    const all = needed.map((name) => paragraph(name));
    expect(() => choosePackages(index(...all, paragraph("docker-cli", more)))).toThrow(/^docker-cli has no /);
  });
});
