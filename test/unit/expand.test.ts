import fc from "fast-check";
import { expect, test } from "vitest";
import { expand } from "../../src/build/expand.ts";
import { BerthError } from "../../src/core/errors.ts";

const at = { source: { name: "Dockerfile", lines: ["ENV …"] }, line: 1, column: 5 };
const variables: Record<string, string> = {
  x: "value",
  empty: "",
  path: "/usr/local/lib/a.tar.gz",
  n1: "1",
  ü: "u",
  w: "a b",
};
const get = (name: string) => (Object.hasOwn(variables, name) ? variables[name] : undefined);
const value = (word: string, escape = "\\") => expand(word, get, at, { escape }).text;

const cases: [string, string][] = [
  ["$x", "value"],
  ["${x}", "value"],
  ["$xy-$x.y", "-value.y"],
  ["$n1$ü", "1u"],
  ["$", "$"],
  ["a$ b", "a$ b"],
  ["$1x", "x"],
  ["\\$x", "$x"],
  ["'$x'", "$x"],
  ['"$x"', "value"],
  ['"\\$x \\" \\a"', '$x " \\a'],
  ["a'b'\"c\"", "abc"],
  ["${nope:-def}", "def"],
  ["${empty:-def}", "def"],
  ["${empty-def}", ""],
  ["${nope-def}", "def"],
  ["${nope:-$x}", "value"],
  ['${nope:-${no2:-"}"}}', "}"],
  ["${x:+set}", "set"],
  ["${empty:+set}", ""],
  ["${empty+set}", "set"],
  ["${nope+set}", ""],
  ["${x:?must}", "value"],
  ["${path#*/}", "usr/local/lib/a.tar.gz"],
  ["${path##*/}", "a.tar.gz"],
  ["${path%.*}", "/usr/local/lib/a.tar"],
  ["${path%%.*}", "/usr/local/lib/a"],
  ["${path#nope}", "/usr/local/lib/a.tar.gz"],
  ["${x#\\v}", "alue"],
  ["${path/l/L}", "/usr/Local/lib/a.tar.gz"],
  ["${path//l/L}", "/usr/LocaL/Lib/a.tar.gz"],
  ["${path//\\//_}", "_usr_local_lib_a.tar.gz"],
  ["${path/l*l/-}", "/usr/-ib/a.tar.gz"],
  ["${x//?/ab}", "ababababab"],
  ["${path/\\/usr/\\/opt}", "\\/opt/local/lib/a.tar.gz"],
  ["a\\", "a"],
];
test.each(cases)("%s is %s", (word, expected) => {
  expect(value(word)).toBe(expected);
});

test("the escape character is the directive's", () => {
  expect(value("`$x c:\\dir\\$x", "`")).toBe("$x c:\\dir\\value");
});

test("words split at white space that variables bring, but not at quoted", () => {
  expect(expand('80 $w "$w" a\\ b', get, at, { escape: "\\" }).words).toEqual(["80", "a", "b", "a b", "a b"]);
});

test("names that are not set are told, unless a modifier cares for them", () => {
  expect(expand("$a ${b} ${c:-1} ${d+1} $x", get, at, { escape: "\\" }).unset).toEqual(["a", "b"]);
});

const refused: [string, RegExp][] = [
  ["${", /bad substitution/],
  ["${x", /bad substitution|missing/],
  ["${x:-a", /`}` is missing/],
  ["${}", /bad substitution/],
  ["${x!y}", /`!` is no modifier/],
  ["${x:#y}", /no modifier/],
  ["'a", /single quote is not closed/],
  ['"a', /double quote is not closed/],
  ["${nope?}", /nope: the variable is not set/],
  ["${empty:?give it}", /empty: give it/],
];
test.each(refused)("%s is refused", (word, message) => {
  expect(() => value(word)).toThrow(message);
});

test("patterns that backtrack for ever elsewhere are matched in pattern × text", () => {
  const long = "a".repeat(60_000);
  const started = performance.now();
  expect(expand(`\${y##${"*a".repeat(30)}b}`, () => long, at, { escape: "\\" }).text).toBe(long);
  expect(() => expand("${y//*b*b*b/x}", () => long, at, { escape: "\\" })).toThrow(/takes too long/);
  expect(performance.now() - started).toBeLessThan(5000);
});

test("whatever the word: a value, or an error of ours", () => {
  const part = fc.constantFrom(..."$ { } ${ ${x $x ${x:- ${x# ${x// / \\ ' \" : - + ? # % * ? a b x".split(" "), " ");
  fc.assert(
    fc.property(fc.array(part, { maxLength: 40 }), (parts) => {
      try {
        value(parts.join(""));
      } catch (error) {
        if (!(error instanceof BerthError)) throw error;
      }
    }),
    { numRuns: 5000 },
  );
});
