import { expect, test } from "vitest";
import { applyChmod, isChmod } from "../../src/build/chmod.ts";
import { matchName, matchPath } from "../../src/build/glob.ts";
import { IgnoreRules } from "../../src/build/ignore.ts";

const ignored = (text: string, path: string) => IgnoreRules.parse(text).ignores(path.split("/"));

const cases: [rules: string, path: string, left: boolean][] = [
  ["node_modules", "node_modules/a/b", true],
  ["node_modules", "src/node_modules", false],
  ["**/node_modules", "src/a/node_modules/x", true],
  ["*.md", "README.md", true],
  ["*.md", "docs/README.md", false],
  ["*.md\n!README.md", "README.md", false],
  ["!README.md\n*.md", "README.md", true],
  ["/abs", "abs", true],
  ["./a/../b/", "b/x", true],
  ["# a\n\n  spaced  ", "spaced", true],
  ["\\#x", "#x", true],
  ["a?c", "abc", true],
  ["[a-c]x", "bx", true],
  ["[^a-c]x", "bx", false],
  ["a/**", "a", false],
  ["a/**", "a/b/c", true],
  ["a/**/z", "a/z", true],
  ["a/**/z", "a/b/c/z", true],
  ["**", "x", true],
  [".", "x", false],
];
test.each(cases)("%j: %s", (rules, path, left) => {
  expect(ignored(rules, path)).toBe(left);
});

test("globs take pattern × name, not more", () => {
  const started = performance.now();
  expect(matchName(`${"*a".repeat(100)}b`, "a".repeat(255))).toBe(false);
  expect(matchPath("**/a/".repeat(50).concat("b").split("/"), "a".repeat(256).split(""))).toBe(false);
  expect(performance.now() - started).toBeLessThan(500);
  expect(matchName("[a", "a")).toBe(false);
});

test("there may be a thousand patterns", () => {
  expect(() => IgnoreRules.parse("a\n".repeat(1001))).toThrow(/up to 1000 are allowed/);
});

const modes: [string, number, boolean, number][] = [
  ["755", 0o644, false, 0o755],
  ["4755", 0, false, 0o4755],
  ["u+x", 0o644, false, 0o744],
  ["a=rX", 0o640, false, 0o444],
  ["a=rX", 0o640, true, 0o555],
  ["go-rwx,u+s", 0o755, false, 0o4700],
  ["+x", 0o644, false, 0o755],
  ["+t", 0o755, true, 0o1755],
];
test.each(modes)("chmod %s of %i", (chmod, before, directory, after) => {
  expect(isChmod(chmod)).toBe(true);
  expect(applyChmod(chmod, before, directory)).toBe(after);
});

test.each(["", "8", "999", "10000", "u+q", "x"])("%j is no mode", (text) => {
  expect(isChmod(text)).toBe(false);
});
