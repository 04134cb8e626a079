// Imports point one way (docs/architecture.md, "The house"). Types of the log and of the settings may be named anywhere.
const settled = "^src/(config|log)\\.ts$";

/** Files under `from` may import, of src, only `to`. */
const only = (name, from, to) => ({
  name,
  severity: "error",
  from: { path: `^src/${from}` },
  to: { path: "^src/", pathNot: [...to.map((each) => `^src/${each}`), settled] },
});

/** A package or Node module that only these files may import. */
const keptTo = (name, module, files) => ({
  name,
  severity: "error",
  from: { path: "^src/", pathNot: files.map((each) => `^src/${each}`) },
  to: { path: module, dependencyTypesNot: ["type-only"] },
});

module.exports = {
  forbidden: [
    {
      name: "no-circle",
      severity: "error",
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ["type-only"] } },
    },
    { name: "not-found", severity: "error", from: {}, to: { couldNotResolve: true } },
    {
      name: "settings-are-types-to-all-but-roots",
      severity: "error",
      from: { path: "^src/", pathNot: "^src/[^/]+\\.ts$" },
      to: { path: settled, dependencyTypesNot: ["type-only"] },
    },
    only("core-imports-nothing", "core/", ["core/"]),
    only("db", "db/", ["core/", "db/"]),
    only("build", "build/", ["core/", "build/"]),
    only("image", "image/", ["core/", "image/"]),
    only("isolation-plan-is-pure", "isolation/plan/", ["core/", "isolation/plan/"]),
    only("isolation", "isolation/", ["core/", "isolation/"]),
    only("routes-are-stateless", "routes/", ["core/", "db/", "build/", "image/", "routes/"]),
    only("engine", "engine/", ["core/", "db/", "build/", "image/", "isolation/", "engine/"]),
    only("agent", "agent/", ["core/", "db/", "build/", "image/", "isolation/", "engine/", "agent/"]),
    only("supervisor", "supervisor/", ["core/", "db/", "isolation/", "supervisor/"]),
    only("demo-is-a-client", "demo/", ["demo/", "image/(tar-[a-z]+|layer-entry)\\.ts"]),
    {
      name: "routes-touch-no-layers-and-no-registry",
      severity: "error",
      from: { path: "^src/routes/" },
      to: {
        path: "^src/image/(layers|layer-|erofs|registry|pull|outbound|upper|convert|tar-)",
        dependencyTypesNot: ["type-only"],
      },
    },
    keptTo("programs-start-in-one-place", "^(node:)?child_process$", [
      "isolation/apply/spawn\\.ts$",
      "supervisor/",
      "db/embedded\\.ts$",
      "routes/git/program\\.ts$",
      "down\\.ts$",
    ]),
    keptTo("sql-in-db", "node_modules/(postgres|drizzle-orm)/", ["db/"]),
    keptTo("http-in-routes", "node_modules/(hono|@hono/[^/]+)/", ["routes/", "agent/", "api\\.ts$"]),
    keptTo("one-logger", "node_modules/pino/", ["log\\.ts$"]),
    keptTo("syscalls-in-few-places", "node_modules/koffi/", ["isolation/apply/", "image/file-xattrs\\.ts$"]),
  ],
  options: {
    doNotFollow: { path: "node_modules" },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: "tsconfig.json" },
    enhancedResolveOptions: {
      exportsFields: ["exports"],
      extensions: [".ts", ".mjs", ".js", ".json"],
      conditionNames: ["import", "node", "default"],
    },
  },
};
