import { describe, expect, test } from "vitest";
import { BerthError } from "../../src/core/errors.ts";
import { parseGitRef, parseGitUrl, parseSubdirectory } from "../../src/core/git-source.ts";
import { fetchFailure } from "../../src/engine/build/git-failure.ts";

function refusal(parse: () => unknown): string {
  try {
    parse();
  } catch (error) {
    if (error instanceof BerthError && error.code === "invalid_request") return error.message;
    throw error;
  }
  throw new Error("it was taken");
}

describe("a repository's URL", () => {
  test.each([
    ["https://git.example/team/web.git", "https://git.example/team/web.git"],
    ["HTTP://Git.Example:80/x", "http://git.example/x"],
    ["https://git.example:8443/a/../b", "https://git.example:8443/b"],
    ["http://0x7f.1/x", "http://127.0.0.1/x"],
    ["http://[::FFFF:127.0.0.1]:3000/x", "http://[::ffff:7f00:1]:3000/x"],
  ])("%s is written in one way", (text, url) => {
    expect(parseGitUrl(text)).toBe(url);
  });

  test.each([
    "",
    "-u",
    "--upload-pack=touch /tmp/x",
    "ext::sh -c id",
    "ext::sh",
    "fd::17/foo",
    "http::https://git.example/x",
    "file:///srv/x.git",
    "/srv/x.git",
    "./x",
    "git://git.example/x",
    "ftp://git.example/x",
    "https:git.example/x",
    "https:///x",
    "https://",
    "https://git.example/a b",
    "https://git.example/\n--x",
    "\thttps://git.example/x",
    "https://git.example\\@127.0.0.1/x",
    "https://git.example./x",
    "https://git.example:0/x",
    "https://git.example:99999/x",
    "https://g*t.example/x",
    "https://git.example/x?token=1",
    "https://git.example/x?",
    "https://git.example/x#main:sub",
    "https://gít.example/x",
    `https://git.example/${"x".repeat(2_048)}`,
  ])("%j is refused", (text) => {
    expect(refusal(() => parseGitUrl(text))).not.toBe("");
  });

  test("ssh is named, and credentials are refused without being repeated", () => {
    for (const text of ["ssh://git@git.example/x", "git@git.example:team/x.git", "SSH://h/x"]) {
      expect(refusal(() => parseGitUrl(text))).toContain("by ssh are not supported");
    }
    for (const text of [
      "https://user:hunter2@git.example/x",
      "https://hunter2@git.example/x",
      "https://@git.example/x",
    ]) {
      const message = refusal(() => parseGitUrl(text));
      expect(message).toContain("must not hold credentials");
      expect(message).not.toContain("hunter2");
    }
  });
});

test("refs: what git takes as a name, and nothing that it takes as more", () => {
  for (const ref of [
    "main",
    "v1.0",
    "feature/x-1",
    "refs/heads/main",
    "HEAD",
    "ünï",
    "a@b",
    "5f3c1f0a4d2be0c6a4f7c3a9b1d0e8f7a6c5b4d3",
  ]) {
    expect(parseGitRef(ref)).toBe(ref);
  }
  for (const ref of [
    "",
    "-x",
    "--upload-pack=x",
    "+main",
    "a:b",
    "main:refs/heads/x",
    "^main",
    "main^",
    "main~1",
    "main^{tree}",
    "a..b",
    "@",
    "@{u}",
    "a@{1}",
    "*",
    "refs/heads/*",
    "a?",
    "a[b",
    "a\\b",
    "a b",
    "a\nb",
    "a\u202Eb",
    "/a",
    "a/",
    "a//b",
    ".a",
    "a/.b",
    "a.lock",
    "a.lock/b",
    "a.",
    "\ud800",
    "x".repeat(256),
  ]) {
    expect(
      refusal(() => parseGitRef(ref)),
      JSON.stringify(ref),
    ).not.toBe("");
  }
});

test("subdirectories stay within the repository", () => {
  expect(parseSubdirectory("services/web")).toBe("services/web");
  expect(parseSubdirectory("./a//b/.")).toBe("a/b");
  expect(parseSubdirectory("-x/..a")).toBe("-x/..a");
  for (const root of ["", ".", "./"]) expect(parseSubdirectory(root)).toBeNull();
  for (const path of ["..", "a/../..", "a/..", "/etc", "a\0b", "a\nb", "\ud800", "x".repeat(4_097)]) {
    expect(
      refusal(() => parseSubdirectory(path)),
      JSON.stringify(path),
    ).not.toBe("");
  }
});

test.each([
  ["fatal: could not read Username for 'https://g.example': terminal prompts disabled", "repository_denied"],
  ["fatal: unable to access 'https://g.example/x/': The requested URL returned error: 403", "repository_denied"],
  ["fatal: repository 'https://g.example/x/' not found", "repository_not_found"],
  ["fatal: https://g.example/x/info/refs not valid: is this a git repository?", "repository_not_found"],
  ["fatal: unable to access 'https://g.example/x/': The requested URL returned error: 301", "repository_not_found"],
  ["fatal: couldn't find remote ref nope", "ref_not_found"],
  ["fatal: remote error: upload-pack: not our ref 5f3c", "ref_not_found"],
  ["error: Server does not allow request for unadvertised object 5f3c", "ref_not_found"],
  ["error: index-pack died of signal 25", "invalid_context"],
  ["fatal: unable to access 'https://g.example/x/': Failed to connect to g.example port 443", "repository_unreachable"],
  ["fatal: unable to access 'https://g.example/x/': The requested URL returned error: 502", "repository_unreachable"],
])("%s means %s, and is not shown itself", (stderr, code) => {
  const error = fetchFailure("https://g.example/x", "nope", stderr, false);
  expect(error.code).toBe(code);
  expect(error.message).not.toContain("fatal");
});

test("a server that was shown credentials is not quoted, not even to the log", () => {
  const stderr = "remote: Authorization: Basic dTpodW50ZXIy\nfatal: Authentication failed for 'https://g.example/x'";
  const error = fetchFailure("https://g.example/x", null, stderr, true);
  expect(error).toMatchObject({ code: "git_auth_failed", cause: new Error("git failed") });
  expect(fetchFailure("https://g.example/x", null, stderr, false).code).toBe("repository_denied");
});

test.each([
  [
    "Failed to connect to g.example port 443 after 0 ms: Couldn't connect to server",
    ": nothing takes connections there.",
  ],
  ["server certificate verification failed. CAfile: none", ": its TLS or its certificate can't be trusted."],
  [
    "gnutls_handshake() failed: An unexpected TLS packet was received.",
    ": its TLS or its certificate can't be trusted.",
  ],
  ["Operation too slow. Less than 1000 bytes/sec", ": its server takes too long to answer."],
  ["The requested URL returned error: 502", ": its server has an error of its own."],
  ["something else", "."],
])("a server that can't be reached (%s) is told with the reason", (stderr, reason) => {
  const { message } = fetchFailure("https://g.example/x", null, `fatal: unable to access '…': ${stderr}`, false);
  expect(message).toBe(`The git repository "https://g.example/x" can't be reached${reason}`);
});
