import tseslint from "typescript-eslint";

/** Only these read the environment: settings have one way in. */
const environmentReaders = ["src/config.ts", "src/main.ts", "src/down.ts", "src/api.ts", "src/worker.ts"];

export default tseslint.config(
  { ignores: ["node_modules/", ".cache/", "test/support/berth-api.d.ts", "**/*.mjs", "**/*.cjs", "*.config.js"] },
  ...tseslint.configs.strictTypeChecked,
  {
    languageOptions: {
      parserOptions: {
        projectService: { allowDefaultProject: ["vitest.config.ts"] },
        tsconfigRootDir: import.meta.dirname,
      },
    },
    rules: {
      "@typescript-eslint/switch-exhaustiveness-check": "error",
      // Promise.withResolvers<void>() is how it is written.
      "@typescript-eslint/no-invalid-void-type": "off",
      // A number has one way to be written.
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      "no-restricted-properties": [
        "error",
        { object: "process", property: "env", message: "Only config.ts and main.ts." },
      ],
      // `() => stop()`, and `return stop()` in a function without a result, are as clear as a block.
      "@typescript-eslint/no-confusing-void-expression": [
        "error",
        { ignoreArrowShorthand: true, ignoreVoidReturningFunctions: true },
      ],
    },
  },
  { files: environmentReaders, rules: { "no-restricted-properties": "off" } },
  {
    files: ["test/**", "vitest.config.ts"],
    rules: {
      "no-restricted-properties": "off",
      "@typescript-eslint/no-non-null-assertion": "off",
    },
  },
);
