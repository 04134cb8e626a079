import { Flags } from "./flags.ts";
import type { CommandLine, Instruction, Pair, StageInstruction } from "./instruction.ts";
import type { LexedInstruction } from "./lex.ts";
import { parseCopy } from "./parse-copy.ts";
import { parseHealthcheck } from "./parse-healthcheck.ts";
import type { Passage } from "./passage.ts";
import { dockerfileError, quoted } from "./source.ts";
import { didYouMean } from "./suggest.ts";
import { jsonStrings, splitSpaces, splitWords } from "./words.ts";

type Parser = (lexed: LexedInstruction, escape: string) => Instruction;

const parsers: Readonly<Record<string, Parser>> = {
  ADD: parseCopy,
  ARG: parseArg,
  CMD: (lexed, escape) => ({ ...written(lexed), kind: "cmd", command: command(noFlags(lexed, escape)) }),
  COPY: parseCopy,
  ENTRYPOINT: (lexed, escape) => ({ ...written(lexed), kind: "entrypoint", command: command(noFlags(lexed, escape)) }),
  ENV: (lexed, escape) => ({ ...written(lexed), kind: "env", pairs: pairs(lexed, escape) }),
  EXPOSE: (lexed, escape) => ({ ...written(lexed), kind: "expose", ports: someWords(lexed, escape) }),
  FROM: parseFrom,
  HEALTHCHECK: parseHealthcheck,
  LABEL: (lexed, escape) => ({ ...written(lexed), kind: "label", pairs: pairs(lexed, escape) }),
  MAINTAINER: (lexed, escape) => ({ ...written(lexed), kind: "maintainer", name: oneArgument(lexed, escape) }),
  ONBUILD: parseOnbuild,
  RUN: parseRun,
  SHELL: parseShell,
  STOPSIGNAL: (lexed, escape) => ({ ...written(lexed), kind: "stopsignal", signal: oneArgument(lexed, escape) }),
  USER: (lexed, escape) => ({ ...written(lexed), kind: "user", user: oneArgument(lexed, escape) }),
  VOLUME: parseVolume,
  WORKDIR: (lexed, escape) => ({ ...written(lexed), kind: "workdir", path: oneArgument(lexed, escape) }),
};

/** Gives an instruction its type. @throws BerthError `invalid_dockerfile`, with a suggestion for a misspelt keyword. */
export function parseInstruction(lexed: LexedInstruction, escape: string): Instruction {
  const parser = Object.hasOwn(parsers, lexed.keyword) ? parsers[lexed.keyword] : undefined;
  if (parser === undefined) {
    const hint = didYouMean(lexed.keyword, Object.keys(parsers)) || ".";
    throw dockerfileError(lexed.at, `there is no instruction ${quoted(lexed.written)}${hint}`);
  }
  return parser(lexed, escape);
}

/** As `parseInstruction`, for what may stand within a stage. */
export function parseStageInstruction(lexed: LexedInstruction, escape: string): StageInstruction {
  const instruction = parseInstruction(lexed, escape);
  if (instruction.kind === "from") throw dockerfileError(lexed.at, "FROM can't stand here.");
  return instruction;
}

function written(lexed: LexedInstruction): { at: LexedInstruction["at"]; text: string } {
  const line = lexed.args.text.replace(/\s+/g, " ");
  return { at: lexed.at, text: line === "" ? lexed.keyword : `${lexed.keyword} ${line}` };
}

function noFlags(lexed: LexedInstruction, escape: string): Passage {
  return Flags.take(lexed.keyword, lexed.args, escape, {}).rest;
}

function oneArgument(lexed: LexedInstruction, escape: string): string {
  const { text } = noFlags(lexed, escape);
  if (text === "") throw dockerfileError(lexed.at, `${lexed.keyword} needs an argument.`);
  return text;
}

function someWords(lexed: LexedInstruction, escape: string): string[] {
  const words = splitSpaces(noFlags(lexed, escape));
  if (words.length === 0) throw dockerfileError(lexed.at, `${lexed.keyword} needs at least one argument.`);
  return words.map((word) => word.text);
}

function command(rest: Passage): CommandLine {
  const args = jsonStrings(rest);
  return args === null ? { form: "shell", text: rest.text } : { form: "exec", args };
}

function pairs(lexed: LexedInstruction, escape: string): Pair[] {
  const rest = noFlags(lexed, escape);
  const words = splitWords(rest, escape);
  const first = words[0];
  if (first === undefined) throw dockerfileError(lexed.at, `${lexed.keyword} needs name=value.`);
  if (!first.text.includes("=")) {
    const match = /^(\S+)\s+(\S[^]*)$/.exec(rest.text);
    if (match === null)
      throw dockerfileError(first.at(), `${lexed.keyword} needs a value: ${first.text.slice(0, 80)}=….`);
    return [{ name: match[1] ?? "", value: match[2] ?? "", legacy: true }];
  }
  return words.map((word) => {
    const equals = word.text.indexOf("=");
    if (equals < 0) throw dockerfileError(word.at(), `${quoted(word.text)} must have the form name=value.`);
    if (equals === 0) throw dockerfileError(word.at(), "a name must stand before `=`.");
    return { name: word.text.slice(0, equals), value: word.text.slice(equals + 1), legacy: false };
  });
}

function parseArg(lexed: LexedInstruction, escape: string): Instruction {
  const words = splitWords(lexed.args, escape);
  if (words.length === 0) throw dockerfileError(lexed.at, "ARG needs a name.");
  const args = words.map((word) => {
    const equals = word.text.indexOf("=");
    const name = equals < 0 ? word.text : word.text.slice(0, equals);
    if (name === "") throw dockerfileError(word.at(), "a name must stand before `=`.");
    return { name, value: equals < 0 ? null : word.text.slice(equals + 1) };
  });
  return { ...written(lexed), kind: "arg", args };
}

function parseFrom(lexed: LexedInstruction, escape: string): Instruction {
  const { flags, rest } = Flags.take("FROM", lexed.args, escape, { platform: "text" });
  const [base, as, name, ...more] = splitSpaces(rest);
  if (base === undefined) throw dockerfileError(lexed.at, "FROM needs an image or a stage.");
  const wrong = as !== undefined && (as.text.toLowerCase() !== "as" || name === undefined) ? as : more[0];
  if (wrong !== undefined) throw dockerfileError(wrong.at(), "FROM has the form `FROM image` or `FROM image AS name`.");
  const stage = name?.text.toLowerCase() ?? null;
  if (stage !== null && !/^[a-z][a-z0-9-_.]*$/.test(stage)) {
    const rule = "begins with a letter and has letters, digits, `-`, `_` and `.`";
    throw dockerfileError(name?.at() ?? lexed.at, `a stage's name ${rule}, unlike ${quoted(name?.text ?? "")}.`);
  }
  return { ...written(lexed), kind: "from", base: base.text, name: stage, platform: flags.text("platform") };
}

function parseRun(lexed: LexedInstruction, escape: string): Instruction {
  const known = { mount: "list", network: "text", security: "text" } as const;
  const { flags, rest } = Flags.take("RUN", lexed.args, escape, known);
  if (rest.text === "") throw dockerfileError(lexed.at, "RUN needs a command.");
  const network = flags.text("network") ?? "default";
  if (network !== "default" && network !== "none") {
    const why =
      network === "host" ? "the host's network belongs to no tenant" : `${quoted(network)} is neither default nor none`;
    throw dockerfileError(flags.at("network") ?? lexed.at, `--network=${network.slice(0, 40)} is not allowed: ${why}.`);
  }
  const security = flags.text("security") ?? "sandbox";
  if (security !== "sandbox") {
    const at = flags.at("security") ?? lexed.at;
    throw dockerfileError(
      at,
      "only --security=sandbox is allowed: every step runs in the sandbox that containers have.",
    );
  }
  return {
    ...written(lexed),
    kind: "run",
    command: command(rest),
    heredocs: lexed.heredocs,
    mounts: flags.list("mount"),
    network,
  };
}

function parseShell(lexed: LexedInstruction, escape: string): Instruction {
  const rest = noFlags(lexed, escape);
  const shell = jsonStrings(rest);
  if (shell === null || shell.length === 0) {
    throw dockerfileError(rest.at(), 'SHELL needs the JSON form: SHELL ["/bin/sh", "-c"].');
  }
  return { ...written(lexed), kind: "shell", shell };
}

function parseVolume(lexed: LexedInstruction, escape: string): Instruction {
  const rest = noFlags(lexed, escape);
  const paths = jsonStrings(rest) ?? splitSpaces(rest).map((word) => word.text);
  if (paths.length === 0 || paths.some((path) => path.trim() === "")) {
    throw dockerfileError(lexed.at, "VOLUME needs at least one path, and none may be empty.");
  }
  return { ...written(lexed), kind: "volume", paths };
}

function parseOnbuild(lexed: LexedInstruction, escape: string): Instruction {
  const { args } = lexed;
  const keyword = /^\S*/.exec(args.text)?.[0] ?? "";
  if (keyword === "") throw dockerfileError(lexed.at, "ONBUILD needs an instruction.");
  const upper = keyword.toUpperCase();
  if (["ONBUILD", "FROM", "MAINTAINER"].includes(upper))
    throw dockerfileError(args.at(), `ONBUILD ${upper} is not allowed.`);
  // Checked now, so that the error stands here and not in the build of whoever uses the image.
  const inner = { ...lexed, keyword: upper, written: keyword, at: args.at(), args: args.slice(keyword.length).trim() };
  parseStageInstruction(inner, escape);
  const heredocs = lexed.heredocs.map(({ content, name }) => `\n${content}${name}`).join("");
  return { ...written(lexed), kind: "onbuild", trigger: args.text + heredocs };
}
