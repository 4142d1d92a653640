/** The tarball a user installs: what its exports map promises is there, typed, and can be imported. */
import { execFileSync } from "node:child_process"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import path from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { publint } from "publint"

const root = path.join(import.meta.dirname, "..")
const require = createRequire(import.meta.url)
let temporary = ""
let unpacked = ""
let tarball = ""

const node = (script: string, ...args: ReadonlyArray<string>) =>
  execFileSync(process.execPath, [script, ...args], {
    cwd: root,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"]
  })

describe("the package", () => {
  beforeAll(() => {
    node(path.join(root, "scripts", "build.ts"))
    temporary = mkdtempSync(path.join(tmpdir(), "cohort-package-"))
    const packed = execFileSync("npm", ["pack", "--ignore-scripts", "--json", "--pack-destination", temporary], {
      cwd: root,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"]
    })
    tarball = path.join(temporary, readTarballName(packed))
    const modules = path.join(temporary, "node_modules")
    mkdirSync(modules)
    execFileSync("tar", ["-xzf", tarball, "-C", temporary])
    unpacked = path.join(temporary, "package")
    // The package's dependencies are this checkout's; Node finds them from the real path of `cohort`.
    symlinkSync(path.join(root, "node_modules"), path.join(unpacked, "node_modules"))
    symlinkSync(unpacked, path.join(modules, "cohort"))
  }, 120_000)

  afterAll(() => {
    if (temporary !== "") rmSync(temporary, { recursive: true, force: true })
  })

  it("exports what its exports map promises", () => {
    const { exports } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8")) as {
      readonly exports: Record<string, unknown>
    }
    const specifiers = Object.keys(exports)
      .filter((key) => !key.endsWith(".json"))
      .map((key) => path.posix.join("cohort", key))
    const probe = path.join(temporary, "probe.mjs")
    writeFileSync(
      probe,
      `${specifiers.map((specifier, i) => `import * as m${i} from ${JSON.stringify(specifier)}`).join("\n")}
       console.log(JSON.stringify([${specifiers.map((_, i) => `Object.keys(m${i}).length`).join(", ")}]))`
    )
    const counts = JSON.parse(execFileSync(process.execPath, [probe], { encoding: "utf8" })) as ReadonlyArray<number>
    assert.strictEqual(counts.length, specifiers.length)
    assert.isTrue(
      counts.every((count) => count > 0),
      `empty: ${specifiers.filter((_, i) => counts[i] === 0)}`
    )
  })

  it("runs: a lock is taken with nothing but the package", () => {
    const probe = path.join(temporary, "run.mjs")
    writeFileSync(
      probe,
      `import { Cohort, Lock } from "cohort"
       import { Effect } from ${JSON.stringify(require.resolve("effect"))}
       console.log(await Effect.runPromise(
         Lock.runExclusive("key", Effect.succeed("held")).pipe(Effect.provide(Cohort.layerMemory()))
       ))`
    )
    assert.strictEqual(execFileSync(process.execPath, [probe], { encoding: "utf8" }).trim(), "held")
  })

  it("loads no driver until a layer that needs it is imported", () => {
    const probe = path.join(temporary, "drivers.mjs")
    writeFileSync(
      probe,
      `import "cohort"
       import { createRequire } from "node:module"
       const loaded = Object.keys(createRequire(import.meta.url).cache).join()
       console.log(/node_modules.(ioredis|amqplib)./.test(loaded))`
    )
    assert.strictEqual(execFileSync(process.execPath, [probe], { encoding: "utf8" }).trim(), "false")
  })

  it("has nothing for publint to say", async () => {
    const { messages } = await publint({ pkgDir: unpacked, strict: true })
    assert.deepStrictEqual(messages, [])
  })

  it("has types that resolve wherever it can be imported", () => {
    const cli = path.join(path.dirname(require.resolve("@arethetypeswrong/cli/package.json")), "dist", "index.js")
    const output = node(cli, tarball, "--profile", "esm-only", "--format", "json")
    const { analysis } = JSON.parse(output) as { readonly analysis: { readonly problems: ReadonlyArray<unknown> } }
    const problems = analysis.problems.filter((problem) => !isIgnored(problem))
    assert.deepStrictEqual(problems, [])
  })
})

/** `require` of an ES module and Node 10's resolution are not supported, on purpose. */
const isIgnored = (problem: unknown): boolean => {
  const { kind, resolutionKind } = problem as { readonly kind: string; readonly resolutionKind?: string }
  return resolutionKind === "node10" || kind === "CJSResolvesToESM"
}

const readTarballName = (output: string): string => {
  const parsed: unknown = JSON.parse(output)
  const [first] = Array.isArray(parsed) ? parsed : Object.values(parsed as object)
  return (first as { readonly filename: string }).filename
}
