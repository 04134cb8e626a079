import fc from "fast-check";
import { expect, test } from "vitest";
import { parseDockerfile } from "../../src/build/dockerfile.ts";
import { lex } from "../../src/build/lex.ts";
import { missingImages, planBuild } from "../../src/build/plan.ts";
import { BerthError } from "../../src/core/errors.ts";
import { parseGitAddress } from "../../src/core/git-source.ts";
import { parseNamedContext } from "../../src/core/named-context.ts";
import { planOptions } from "../support/plan-options.ts";

const args = (text: string) => lex(text).instructions.map(({ keyword, args }) => `${keyword} ${args.text}`);

test("comments, empty lines, continuations and white space", () => {
  expect(
    args(
      "\uFEFF# a comment\r\n\r\n  run  a \\\r\n   # not here\r\n\r\n  b\\\r\nc  \r\nCMD x # not a comment\n#end\nLABEL \\\n",
    ),
  ).toEqual(["RUN a   bc", "CMD x # not a comment", "LABEL "]);
});

test("a doubled escape does not continue; trailing blanks after an escape do not matter", () => {
  expect(args("RUN a \\\\\nCMD b\\  \t\nc")).toEqual(["RUN a \\\\", "CMD bc"]);
});

test("directives stand at the top, once each, and change the escape character", () => {
  const lexed = lex("# syntax=docker/dockerfile:1\n# Escape = `\n# check=skip=all\nRUN a `\n b\\\n");
  expect(lexed.directives).toEqual({
    syntax: "docker/dockerfile:1",
    escape: "`",
    check: { skip: "all", error: false },
  });
  expect(lexed.instructions.map(({ args }) => args.text)).toEqual(["a  b\\"]);
  expect(lex("RUN x\n# escape=`\n").escape).toBe("\\");
  expect(lex("#\n# escape=`\n").escape).toBe("\\");
  expect(lex("# unknown=1\n# escape=`\n").escape).toBe("\\");
  expect(() => lex("# escape=x\n")).toThrow(/:1:1: the escape character must be/);
  expect(() => lex("# escape=`\n# escape=`\n")).toThrow(/:2:1: the directive escape may stand once/);
});

test("heredocs: quoted, chomped, several in one instruction, none in quotes or after <<<", () => {
  const [run, copy, cmd] = lex(
    "RUN <<A cat 3<<-'B B' && echo '<<C' <<<D $((1<<2)) $(( 1 << 2 ))\n\ta\nA\n\tb\n\tB B\nCOPY << \"X\" /x\n\nX\nCMD <<Y\n",
  ).instructions;
  expect(run?.heredocs).toEqual([
    { name: "A", expand: true, chomp: false, content: "\ta\n" },
    { name: "B B", expand: false, chomp: true, content: "\tb\n" },
  ]);
  expect(copy?.heredocs).toEqual([{ name: "X", expand: false, chomp: false, content: "\n" }]);
  expect(cmd?.heredocs).toEqual([]);
  expect(() => lex("FROM a\nRUN x <<EOF\ny\n")).toThrow(/:2:7: the heredoc is not closed: no line is "EOF" alone/);
});

test("places survive continuations", () => {
  const [first] = lex("RUN one \\\n   # comment\n  two").instructions;
  const two = first?.args.text.indexOf("two") ?? -1;
  expect(first?.args.at(two)).toMatchObject({ line: 3, column: 3 });
});

test("the error shows the line and points at the column, with a suggestion", () => {
  let message = "";
  try {
    parseDockerfile("FROM debian\n\n\tRNU make");
  } catch (error) {
    expect(error).toMatchObject({ code: "invalid_dockerfile", facts: { line: 3, column: 2 } });
    message = (error as Error).message;
  }
  expect(message).toBe('Dockerfile:3:2: there is no instruction "RNU"; did you mean RUN?\n  3 | \tRNU make\n    | \t^');
});

const refused: [string, RegExp][] = [
  ["", /has no FROM/],
  ["RUN x", /:1:1: RUN stands before the first FROM; only ARG may/],
  ["FROM", /FROM needs an image or a stage/],
  ["FROM a b", /:1:8: FROM has the form/],
  ["FROM a AS", /has the form/],
  ["FROM a AS b c", /:1:13/],
  ["FROM a AS 1b", /:1:11: a stage's name/],
  ["FROM --platfrom=x a", /:1:6: FROM has no flag "--platfrom"; did you mean --platform\?/],
  ["FROM --platform=x --platform=y a", /stands twice/],
  ["FROM a\nCOPY --link=maybe a b", /:2:6: --link must be true or false/],
  ["FROM a\nCOPY x", /:2:1: COPY needs at least one source and a destination/],
  ['FROM a\nRUN ["a", 1]', /:2:5: element 2 of the JSON array must be a string/],
  ["FROM a\nENV x", /:2:5: ENV needs a value/],
  ["FROM a\nENV a=1 b", /:2:9: "b" must have the form name=value/],
  ["FROM a\nENV =1", /a name must stand before/],
  ["FROM a\nSHELL x", /needs the JSON form/],
  ["FROM a\nHEALTHCHECK curl", /needs CMD or NONE/],
  ["FROM a\nHEALTHCHECK --interval=fast CMD x", /:2:13: --interval must be a duration/],
  ["FROM a\nONBUILD ONBUILD RUN x", /ONBUILD ONBUILD is not allowed/],
  ["FROM a\nRUN\0x", /:2:4: a NUL/],
  ["FROM a\nCOPY <<../x /y\n../x\n", /can't be a file's name/],
];
test.each(refused)("%j is refused", (text, message) => {
  expect(() => parseDockerfile(text)).toThrow(message);
});

test("flags take quotes, and end at the first word that is none or at --", () => {
  const [copy] = parseDockerfile("FROM a\nCOPY --chown='a b' --link -- --x /y").stages[0]?.instructions ?? [];
  expect(copy).toMatchObject({ chown: "a b", link: true, sources: ["--x"], destination: "/y" });
});

test("a hundred megabytes in one line, and ten thousand stages, fail at once with the line", () => {
  // Processor time: a busy machine is no slower at it.
  const started = process.cpuUsage();
  expect(() => parseDockerfile(`FROM a\nRUN ${"x".repeat(100_000_000)}`)).toThrow(
    /:2:1: the line has 100000004 characters/,
  );
  expect(() => parseDockerfile("FROM a\n".repeat(10_000))).toThrow(/:1001:1: a Dockerfile may have up to 1000 stages/);
  expect(() => parseDockerfile("# x\n".repeat(2_000_000))).toThrow(/may have up to 4194304 characters/);
  expect(process.cpuUsage(started).user).toBeLessThan(2_000_000);
});

test("whatever the text: parsed and planned, or an error of ours, quickly", () => {
  const words = fc.constantFrom(
    ..."FROM ARG RUN COPY ADD ENV LABEL WORKDIR USER EXPOSE VOLUME CMD ENTRYPOINT ONBUILD HEALTHCHECK SHELL STOPSIGNAL".split(
      " ",
    ),
    ..."AS --from=a --mount=type=cache,target=/x --chown=$x a b . / /x [ ] \" ' \\ ` # << <<EOF EOF <<-E $ ${ } ${x:-y} ${x//a/b} = a=b 80/tcp".split(
      " ",
    ),
    "\n",
    "\n",
    " ",
    "\t",
    '["a"]',
    "# escape=`",
    "# check=skip=all;error=true",
    "# check=x",
    ..."https://h/x.git#a:b https://h/x.git?ref=-x https://h/%zz/ http://[ git@h:x --checksum=sha256:0 --keep-git-dir".split(
      " ",
    ),
    ..."SOURCE_DATE_EPOCH=x --exclude=* --parents --interval=1.5h CMD --platform=$a img files".split(" "),
  );
  const text = fc.oneof(
    fc.array(words, { maxLength: 60 }).map((parts) => `FROM a\n${parts.join(" ")}`),
    fc.array(words, { maxLength: 60 }).map((parts) => parts.join("")),
    fc.string({ unit: "binary", maxLength: 200 }),
  );
  const options = planOptions({
    args: { x: "1" },
    contexts: {
      img: { kind: "image" as const, reference: "debian" },
      files: { kind: "tar" as const, url: "http://h/x" },
    },
  });
  fc.assert(
    fc.property(text, (source) => {
      try {
        const dockerfile = parseDockerfile(source);
        missingImages(dockerfile, options, new Map());
        planBuild(dockerfile, options, new Map());
      } catch (error) {
        if (!(error instanceof BerthError)) throw error;
        expect(["invalid_dockerfile", "invalid_request"]).toContain(error.code);
        expect(error.message.length).toBeLessThan(1000);
      }
    }),
    { numRuns: 3000 },
  );
});

test("whatever the address: parsed, or an error of ours", () => {
  const part = fc.constantFrom(
    ..."https:// http:// docker-image:// git@ ssh:// h .git / : # ? & = @ % %zz .. - [ ] ref tag subdir \\".split(" "),
  );
  const text = fc.oneof(
    fc.array(part, { maxLength: 15 }).map((parts) => parts.join("")),
    fc.string({ unit: "binary", maxLength: 100 }),
  );
  fc.assert(
    fc.property(text, (source) => {
      for (const parse of [parseNamedContext, parseGitAddress]) {
        try {
          parse(source);
        } catch (error) {
          if (!(error instanceof BerthError)) throw error;
        }
      }
    }),
    { numRuns: 3000 },
  );
});
