import type { Healthcheck } from "../core/image.ts";
import type { Heredoc } from "./heredoc.ts";
import type { Location } from "./source.ts";

/** What all instructions have: where they stand and how they were written (one line, heredoc content left out). */
interface Written {
  at: Location;
  text: string;
}

/** `["a", "b"]`, run as it is, or a line for the shell. */
export type CommandLine = { form: "exec"; args: string[] } | { form: "shell"; text: string };

/** A name and a value as written: variables and quotes are still in it. `legacy`: `ENV name value` without `=`. */
export interface Pair {
  name: string;
  value: string;
  legacy: boolean;
}

export interface FromInstruction extends Written {
  kind: "from";
  base: string;
  /** Lower case; null: the stage has a number only. */
  name: string | null;
  platform: string | null;
}

export interface ArgInstruction extends Written {
  kind: "arg";
  /** value null: declared without a default. */
  args: { name: string; value: string | null }[];
}

/** One `--mount` of RUN, as written; expanded and checked by `parseMount` when the variables are known. */
export interface RunInstruction extends Written {
  kind: "run";
  command: CommandLine;
  heredocs: Heredoc[];
  mounts: { text: string; at: Location }[];
  network: "default" | "none";
}

/** A heredoc as a source of COPY or ADD: a file of this name. */
export interface InlineFile {
  name: string;
  content: string;
  expand: boolean;
}

export interface CopyInstruction extends Written {
  kind: "copy" | "add";
  sources: string[];
  inline: InlineFile[];
  destination: string;
  /** `--from` of COPY: a stage's name or number, or an image. */
  from: string | null;
  chown: string | null;
  chmod: string | null;
  link: boolean;
  parents: boolean;
  excludes: string[];
  /** Of ADD. `unpack` null: local archives are unpacked, remote ones are not. */
  checksum: string | null;
  keepGitDir: boolean;
  unpack: boolean | null;
}

/** A trigger kept in the image for those who build on it. */
export interface OnbuildInstruction extends Written {
  kind: "onbuild";
  trigger: string;
}

export type StageInstruction =
  | ArgInstruction
  | RunInstruction
  | CopyInstruction
  | OnbuildInstruction
  | (Written & { kind: "env" | "label"; pairs: Pair[] })
  | (Written & { kind: "cmd" | "entrypoint"; command: CommandLine })
  | (Written & { kind: "workdir"; path: string })
  | (Written & { kind: "user"; user: string })
  | (Written & { kind: "expose"; ports: string[] })
  | (Written & { kind: "volume"; paths: string[] })
  | (Written & { kind: "stopsignal"; signal: string })
  | (Written & { kind: "healthcheck"; healthcheck: Healthcheck })
  | (Written & { kind: "shell"; shell: string[] })
  | (Written & { kind: "maintainer"; name: string });

export type Instruction = FromInstruction | StageInstruction;
