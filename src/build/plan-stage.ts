import type { ImageConfig, ImageProcess } from "../core/image.ts";
import type { Dockerfile } from "./dockerfile.ts";
import { copyOrigin, imageKey, type ResolvedStage } from "./graph.ts";
import { heredocText, soleHeredoc } from "./heredoc.ts";
import type { ArgInstruction, CommandLine, RunInstruction, StageInstruction } from "./instruction.ts";
import { exposedPorts, goHealthcheck, goStrings, isSignal } from "./metadata.ts";
import { parseMount } from "./mount.ts";
import type { PlanOptions } from "./options.ts";
import type { CopyOrigin } from "./origin.ts";
import { isKernelPath, resolvePath } from "./paths.ts";
import { planCopy } from "./plan-copy.ts";
import { proxyNames, Scope } from "./scope.ts";
import { dockerfileError, type Location, quoted } from "./source.ts";
import type { RunStep, StagePlan, Step, StepBody } from "./step.ts";
import { type CheckName, looksSecret, type Warning } from "./warning.ts";

/** What a stage leaves to the stages that build on it. */
export interface StageEnd {
  config: ImageProcess;
  variables: ReadonlyMap<string, string>;
  args: ReadonlyMap<string, string | undefined>;
  author: string | undefined;
}

/** What planning a stage reads; `warnings` grows. */
export interface StageContext {
  dockerfile: Dockerfile;
  options: PlanOptions;
  globals: Scope;
  images: ReadonlyMap<string, ImageConfig>;
  ends: ReadonlyMap<number, StageEnd>;
  warnings: Warning[];
}

/** Each is made on the host, and the step starts when all are. */
const maxMounts = 100;

export const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** Plans one stage; its steps count from `firstIndex`. */
export function planStage(
  resolved: ResolvedStage,
  firstIndex: number,
  context: StageContext,
): { plan: StagePlan; end: StageEnd } {
  const planner = new StagePlanner(resolved, firstIndex, context);
  for (const instruction of resolved.instructions) planner.add(instruction);
  return planner.finish();
}

type Of<K extends StageInstruction["kind"]> = Extract<StageInstruction, { kind: K }>;

class StagePlanner {
  readonly #resolved: ResolvedStage;
  readonly #context: StageContext;
  readonly #name: string;
  readonly #firstIndex: number;
  readonly #scope: Scope;
  readonly #steps: Step[] = [];
  #config: ImageProcess;
  #author: string | undefined;
  /** This stage has a CMD of its own, which an ENTRYPOINT after it leaves alone. */
  #ownCommand = false;

  constructor(resolved: ResolvedStage, firstIndex: number, context: StageContext) {
    this.#resolved = resolved;
    this.#context = context;
    this.#firstIndex = firstIndex;
    const { stage, base } = resolved;
    this.#name = stage.name ?? `stage-${stage.number}`;
    const begin = beginning(resolved, context);
    // The base's triggers run in this stage, and not again in those that build on it.
    this.#config = structuredClone(begin.config);
    delete this.#config.OnBuild;
    this.#author = begin.author;
    this.#scope = new Scope(context.dockerfile.escape, context.warnings, begin.variables, begin.args);
    const shown = base.kind === "image" ? (base.key.split(" ")[0] ?? "") : stage.from.base;
    const text = `FROM ${shown}${stage.name === null ? "" : ` AS ${stage.name}`}`;
    this.#push({ at: stage.from.at, text }, { kind: "from", createdBy: null });
  }

  finish(): { plan: StagePlan; end: StageEnd } {
    const { stage, base, platform, dependsOn } = this.#resolved;
    const config = this.#config;
    const author = this.#author;
    return {
      plan: { number: stage.number, name: this.#name, base, platform, dependsOn, steps: this.#steps, config, author },
      end: { config, author, variables: this.#scope.variables, args: this.#scope.args },
    };
  }

  add(instruction: StageInstruction): void {
    switch (instruction.kind) {
      case "arg":
        return this.#arg(instruction);
      case "run":
        return this.#run(instruction);
      case "copy":
      case "add": {
        const origin = instruction.from === null ? undefined : this.#origin(instruction.from, instruction.at);
        return this.#push(instruction, planCopy(instruction, origin ?? { kind: "context" }, this.#scope, this.#cwd()));
      }
      case "env":
      case "label":
        return this.#pairs(instruction);
      case "cmd":
      case "entrypoint":
        return this.#command(instruction);
      case "workdir":
        return this.#workdir(instruction);
      case "user":
        this.#config.User = this.#word(instruction.user, instruction.at);
        return this.#meta(instruction, `USER ${this.#config.User}`);
      case "expose":
        return this.#expose(instruction);
      case "volume": {
        const paths = instruction.paths.map((path) => this.#word(path, instruction.at));
        if (paths.includes("")) throw dockerfileError(instruction.at, "a path of VOLUME is empty.");
        this.#config.Volumes = { ...this.#config.Volumes, ...Object.fromEntries(paths.map((path) => [path, {}])) };
        return this.#meta(instruction, `VOLUME [${paths.join(" ")}]`);
      }
      case "stopsignal": {
        const signal = this.#word(instruction.signal, instruction.at);
        if (!isSignal(signal)) throw dockerfileError(instruction.at, `there is no signal ${quoted(signal)}.`);
        this.#config.StopSignal = signal;
        return this.#meta(instruction, `STOPSIGNAL ${signal}`);
      }
      case "healthcheck":
        this.#config.Healthcheck = instruction.healthcheck;
        return this.#meta(instruction, `HEALTHCHECK ${goHealthcheck(instruction.healthcheck)}`);
      case "shell":
        this.#config.Shell = instruction.shell;
        return this.#meta(instruction, `SHELL [${instruction.shell.join(" ")}]`);
      case "onbuild":
        this.#config.OnBuild = [...(this.#config.OnBuild ?? []), instruction.trigger];
        return this.#meta(instruction, null);
      case "maintainer":
        this.#author = instruction.name;
        return this.#meta(instruction, `MAINTAINER ${instruction.name}`);
    }
  }

  #push(written: { at: Location; text: string }, body: StepBody): void {
    const index = this.#firstIndex + this.#steps.length;
    // A trigger's own lines mean nothing to whoever reads the Dockerfile: it stands at its FROM.
    const { from } = this.#resolved.stage;
    const at = written.at.source === from.at.source ? written.at : { ...from.at };
    this.#steps.push({ ...body, index, stage: this.#name, instruction: written.text, at });
  }

  #meta(written: { at: Location; text: string }, createdBy: string | null): void {
    this.#push(written, { kind: "meta", createdBy });
  }

  #word(text: string, at: Location): string {
    return this.#scope.word(text, at);
  }

  #cwd(): string {
    return resolvePath("/", this.#config.WorkingDir ?? "/");
  }

  #warn(check: CheckName, message: string, at: Location): void {
    this.#context.warnings.push({ check, message, at });
  }

  #origin(from: string, at: Location): CopyOrigin {
    const { stage, platform } = this.#resolved;
    const { dockerfile, options } = this.#context;
    const key = (reference: string) => imageKey(reference, platform);
    return copyOrigin(dockerfile, stage.number, from, at, options.contexts, key);
  }

  #arg(instruction: ArgInstruction): void {
    const given = this.#context.options.args;
    const shown: string[] = [];
    // One after the other, unlike ENV's: a default may use those before it. One that is not needed is not expanded.
    for (const { name, value } of instruction.args) {
      this.#warnIfSecret("ARG", name, instruction.at);
      const chosen = Object.hasOwn(given, name)
        ? given[name]
        : value === null
          ? this.#context.globals.variables.get(name)
          : this.#word(value, instruction.at);
      this.#scope.args.set(name, chosen);
      if (chosen !== undefined) this.#scope.variables.set(name, chosen);
      shown.push(chosen === undefined ? name : `${name}=${chosen}`);
    }
    this.#meta(instruction, `ARG ${shown.join(" ")}`);
  }

  #pairs(instruction: Of<"env" | "label">): void {
    const { at } = instruction;
    const keyword = instruction.kind.toUpperCase();
    // All values of one instruction are expanded with the variables from before it.
    const pairs = instruction.pairs.map(({ name, value, legacy }) => {
      if (legacy) this.#warn("LegacyKeyValueFormat", `${keyword} ${name} … should be written ${keyword} ${name}=…`, at);
      return [this.#word(name, at), this.#word(value, at)] as const;
    });
    for (const [name, value] of pairs) {
      if (instruction.kind === "label") {
        this.#config.Labels = { ...this.#config.Labels, [name]: value };
        continue;
      }
      if (/[=\0]|^$/.test(name)) throw dockerfileError(at, `${quoted(name)} can't be a variable's name.`);
      this.#warnIfSecret("ENV", name, at);
      this.#scope.variables.set(name, value);
      const env = this.#config.Env ?? [];
      const index = env.findIndex((entry) => entry.startsWith(`${name}=`));
      this.#config.Env = index < 0 ? [...env, `${name}=${value}`] : env.with(index, `${name}=${value}`);
    }
    this.#meta(instruction, `${keyword} ${pairs.map(([name, value]) => `${name}=${value}`).join(" ")}`);
  }

  #warnIfSecret(keyword: string, name: string, at: Location): void {
    if (!looksSecret(name)) return;
    this.#warn(
      "SecretsUsedInArgOrEnv",
      `${keyword} ${name} stays readable in the image; use RUN --mount=type=secret`,
      at,
    );
  }

  #shell(line: string): string[] {
    return [...(this.#config.Shell ?? ["/bin/sh", "-c"]), line];
  }

  #command(instruction: Of<"cmd" | "entrypoint">): void {
    const { command, at } = instruction;
    const keyword = instruction.kind.toUpperCase();
    if (command.form === "shell" && this.#config.Shell === undefined) {
      this.#warn("JSONArgsRecommended", `${keyword} in the JSON form lets signals reach the program`, at);
    }
    const args = command.form === "exec" ? command.args : this.#shell(command.text);
    if (instruction.kind === "cmd") {
      if (args.length === 0) delete this.#config.Cmd;
      else this.#config.Cmd = args;
      this.#ownCommand = true;
    } else {
      if (args.length === 0) delete this.#config.Entrypoint;
      else this.#config.Entrypoint = args;
      if (!this.#ownCommand) delete this.#config.Cmd;
    }
    this.#meta(instruction, `${keyword} ${goStrings(args)}`);
  }

  #workdir(instruction: Of<"workdir">): void {
    const { at } = instruction;
    const written = this.#word(instruction.path, at);
    if (!written.startsWith("/") && !this.#steps.some((step) => step.kind === "workdir")) {
      this.#warn("WorkdirRelativePath", "the first WORKDIR should be absolute, not relative to the base image's", at);
    }
    const path = resolvePath(this.#cwd(), written);
    if (isKernelPath(path)) throw dockerfileError(at, `WORKDIR can't be in ${quoted(path)}: it belongs to the kernel.`);
    this.#config.WorkingDir = path;
    this.#push(instruction, { kind: "workdir", path, user: this.#config.User ?? "", createdBy: `WORKDIR ${path}` });
  }

  #expose(instruction: Of<"expose">): void {
    const { at } = instruction;
    const ports = instruction.ports
      .toSorted()
      .flatMap((text) => this.#scope.words(text, at))
      .flatMap((text) => {
        const some = exposedPorts(text);
        if (some === null) throw dockerfileError(at, `${quoted(text)} is no port; one is 80, 53/udp or 8000-8010.`);
        if (/[A-Z]/.test(text)) this.#warn("ExposeProtoCasing", `the protocol of ${text} should be in lower case`, at);
        if (text.includes(":")) this.#warn("ExposeInvalidFormat", `of ${text} only the container's port counts`, at);
        return some;
      });
    this.#config.ExposedPorts = {
      ...this.#config.ExposedPorts,
      ...Object.fromEntries(ports.map((port) => [port, {}])),
    };
    this.#meta(instruction, `EXPOSE [${ports.join(" ")}]`);
  }

  #run(instruction: RunInstruction): void {
    const { at } = instruction;
    const { command, script } = this.#script(instruction);
    const argv = command.form === "exec" ? command.args : this.#shell(command.text);
    if (argv.length === 0) throw dockerfileError(at, "RUN needs a command.");
    const cwd = this.#cwd();
    const tooMany = instruction.mounts[maxMounts];
    if (tooMany !== undefined) throw dockerfileError(tooMany.at, `a RUN may have up to ${maxMounts} mounts.`);
    const mounts = instruction.mounts.flatMap((mount) => {
      const context = {
        expand: (text: string) => this.#word(text, mount.at),
        cwd,
        origin: (from: string) => this.#origin(from, mount.at),
      };
      return parseMount(mount.text, mount.at, context) ?? [];
    });
    const { args, variables } = this.#scope;
    const shownArgs = [...args.keys()].map((name) => `${name}=${variables.get(name) ?? ""}`);
    const prefix = shownArgs.length === 0 ? [] : [`|${shownArgs.length}`, ...shownArgs];
    const given = this.#context.options.args;
    const step: StepBody<RunStep> = {
      kind: "run",
      argv,
      env: [...variables].map(([name, value]) => `${name}=${value}`),
      proxyEnv: Object.entries(given)
        .filter(([name]) => proxyNames.has(name) && !variables.has(name))
        .map(([name, value]) => `${name}=${value}`),
      cwd,
      user: this.#config.User ?? "",
      network: instruction.network,
      mounts,
      script,
      createdBy: `RUN ${[...prefix, ...argv].join(" ")}`,
    };
    this.#push(instruction, step);
  }

  /**
   * A RUN with heredocs: one that is the whole command is a script (for the shell or, with `#!`, a file of its own);
   * otherwise the lines are put back together and the shell reads them.
   */
  #script(instruction: RunInstruction): { command: CommandLine; script: RunStep["script"] } {
    const { command, heredocs } = instruction;
    const [first] = heredocs;
    if (first === undefined || command.form === "exec") return { command, script: null };
    if (soleHeredoc(command.text, this.#context.dockerfile.escape) === null) {
      const lines = heredocs.map(({ content, name }) => `\n${content}${name}`).join("");
      return { command: { form: "shell", text: command.text + lines }, script: null };
    }
    const content = heredocText(first);
    if (!content.startsWith("#!")) return { command: { form: "shell", text: content }, script: null };
    const path = `/.heredoc/${first.name.replaceAll("/", "_")}`;
    return { command: { form: "exec", args: [path] }, script: { path, content } };
  }
}

function beginning(resolved: ResolvedStage, { images, ends }: StageContext): StageEnd {
  const { base } = resolved;
  const before = base.kind === "stage" ? ends.get(base.stage) : undefined;
  if (before !== undefined) return before;
  const image = base.kind === "image" ? images.get(base.key) : undefined;
  const config: ImageProcess = image === undefined ? { Env: [defaultPath], WorkingDir: "/" } : { ...image.config };
  if (!config.Env?.some((entry) => entry.startsWith("PATH="))) config.Env = [...(config.Env ?? []), defaultPath];
  const variables = new Map(
    config.Env.map((entry) => [entry.slice(0, Math.max(0, entry.indexOf("="))), entry.slice(entry.indexOf("=") + 1)]),
  );
  return { config, variables, args: new Map(), author: image?.author };
}
