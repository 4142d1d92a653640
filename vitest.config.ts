import { readFileSync } from "node:fs"
import { availableParallelism } from "node:os"
import { defineConfig } from "vitest/config"

const { exports } = JSON.parse(readFileSync(new URL("package.json", import.meta.url), "utf8")) as {
  readonly exports: Record<string, { readonly default?: string } | null>
}

export default defineConfig({
  resolve: {
    // Examples import the package as its users do; here that is its sources.
    alias: Object.entries(exports).flatMap(([name, target]) =>
      target?.default === undefined || name.includes("*")
        ? []
        : {
            find: new RegExp(`^cohort${name.slice(1)}$`),
            replacement: new URL(target.default.replace("./dist/", "src/").replace(/\.js$/, ".ts"), import.meta.url)
              .pathname
          }
    )
  },
  test: {
    include: ["test/**/*.test.ts", "examples/test-your-plugin/*.test.ts"],
    // A limit for what hangs: machines are busy.
    testTimeout: 60_000,
    hookTimeout: 120_000,
    maxConcurrency: 10,
    // Most of the time is spent waiting for servers, so that on two cores two files at a time take less than one.
    maxWorkers: Math.max(availableParallelism() - 1, 2)
  }
})
