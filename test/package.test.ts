/** The tarball a user installs: what its exports map promises is there, typed, and can be imported. */
import { execFileSync, spawnSync } from "node:child_process"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import path from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { publint } from "publint"

const root = path.join(import.meta.dirname, "..")
const require = createRequire(import.meta.url)
const manifest = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8")) as {
  readonly exports: Record<string, unknown>
  readonly dependencies: Record<string, string>
  readonly peerDependencies: Record<string, string>
}
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
    unpacked = path.join(temporary, "node_modules", "cohort")
    mkdirSync(unpacked, { recursive: true })
    execFileSync("tar", ["-xzf", tarball, "-C", unpacked, "--strip-components=1"])
    // What a user has beside it: its dependencies and peers, from this checkout, and nothing else.
    for (const name of Object.keys({ ...manifest.dependencies, ...manifest.peerDependencies })) {
      const link = path.join(temporary, "node_modules", name)
      mkdirSync(path.dirname(link), { recursive: true })
      symlinkSync(path.join(root, "node_modules", name), link)
    }
  }, 120_000)

  afterAll(() => {
    if (temporary !== "") rmSync(temporary, { recursive: true, force: true })
  })

  it("exports what its exports map promises", () => {
    const specifiers = Object.keys(manifest.exports)
      .filter((key) => !key.endsWith(".json") && !key.includes("*"))
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

  // With another beside it types do not fit, and the compiler does not say why; npm refuses what does not go together.
  it("leaves it to its user which Effect there is", () => {
    assert.property(manifest.peerDependencies, "effect")
    assert.notProperty(manifest.dependencies, "effect")
  })

  it("runs: a lock is taken with nothing but the package", () => {
    const probe = path.join(temporary, "run.mjs")
    writeFileSync(
      probe,
      `import { Cohort, Lock } from "cohort"
       import { Effect } from "effect"
       console.log(await Effect.runPromise(
         Lock.runExclusive("key", Effect.succeed("held")).pipe(Effect.provide(Cohort.layerMemory()))
       ))`
    )
    assert.strictEqual(execFileSync(process.execPath, [probe], { encoding: "utf8" }).trim(), "held")
  })

  it("loads no driver until a layer that needs it is built", () => {
    const probe = path.join(temporary, "drivers.mjs")
    writeFileSync(
      probe,
      `import { Cohort } from "cohort"
       import { Effect, Layer } from ${JSON.stringify(require.resolve("effect"))}
       import { createRequire } from "node:module"
       const { cache } = createRequire(import.meta.url)
       const loaded = () => ["ioredis", "amqplib"].filter((name) =>
         Object.keys(cache).some((file) => file.includes(\`node_modules/\${name}/\`)))
       const server = { timeout: "1 millis", lazy: true }
       const build = (layer) => Effect.runPromiseExit(Effect.scoped(Layer.build(layer)))
       const all = [loaded()]
       await build(Cohort.layerMixed())
       all.push(loaded())
       await build(Cohort.layerMixed({ lock: "redis", redis: server }))
       all.push(loaded())
       await build(Cohort.layerAmqp(server))
       all.push(loaded())
       console.log(JSON.stringify(all))`
    )
    // Above it, the connections say what they lack.
    const last = execFileSync(process.execPath, [probe], { encoding: "utf8" }).trim().split("\n").at(-1)!
    assert.deepStrictEqual(JSON.parse(last), [[], [], ["ioredis"], ["ioredis", "amqplib"]])
  })

  it("holds a backend of someone else's to its contract, in a project of theirs", () => {
    writeFileSync(
      path.join(temporary, "theirs.test.ts"),
      `import { Effect, Layer } from "effect"
       import { LockStore } from "cohort"
       import { MemoryLockStore } from "cohort/layers/memory"
       import { Backend, Contracts } from "cohort/testing/contracts"

       const theirs = Effect.map(MemoryLockStore.make, ({ request: _, ...store }) => ({ ...store, system: "theirs" }))
       const repeat = Effect.map((grant) => grant && Object.assign(grant, { fence: 7 }))
       const broken = Effect.map(theirs, (store) => ({
         ...store,
         acquire: (...args) => repeat(store.acquire(...args)),
         tryAcquire: (...args) => repeat(store.tryAcquire(...args))
       }))
       const backend = (name, store) => Backend.onMemory({ name, stores: Layer.effect(LockStore.LockStore, store) })

       Contracts.lock(backend("theirs", theirs), { propertyRuns: 10 })
       Contracts.lock(backend("one whose fences repeat", broken), { propertyRuns: 10 })`
    )
    const vitest = path.join(path.dirname(require.resolve("vitest/package.json")), "vitest.mjs")
    const report = path.join(temporary, "report.json")
    spawnSync(process.execPath, [vitest, "run", "--reporter=json", `--outputFile=${report}`], { cwd: temporary })
    const { testResults } = JSON.parse(readFileSync(report, "utf8")) as {
      readonly testResults: ReadonlyArray<{
        readonly assertionResults: ReadonlyArray<{ readonly fullName: string; readonly status: string }>
      }>
    }
    const results = testResults.flatMap(({ assertionResults }) => assertionResults)
    const ended = (name: string, status: string) =>
      results.filter((result) => result.fullName.startsWith(`Lock on ${name}`) && result.status === status).length
    assert.isAtLeast(ended("theirs", "passed"), 40)
    assert.strictEqual(ended("theirs", "failed"), 0)
    assert.isAtLeast(ended("one whose fences repeat", "passed"), 40)
    assert.isAtLeast(ended("one whose fences repeat", "failed"), 3)
  }, 120_000)

  it("holds the guide for tests of plugins, whose code compiles and passes in a project of theirs", () => {
    const project = path.join(temporary, "guide")
    mkdirSync(project)
    const guide = readFileSync(path.join(unpacked, "docs", "test-your-plugin.md"), "utf8")
    for (const [, file, code] of guide.matchAll(/^```ts (\S+)\n(.*?)^```$/gms)) {
      writeFileSync(path.join(project, path.basename(file!)), code!)
    }
    const settings = { module: "NodeNext", strict: true, allowImportingTsExtensions: true, noEmit: true }
    writeFileSync(path.join(project, "package.json"), JSON.stringify({ type: "module" }))

    const compilerOptions = { ...settings, skipLibCheck: true, types: [] }
    writeFileSync(path.join(project, "tsconfig.json"), JSON.stringify({ compilerOptions }))
    const tsc = path.join(path.dirname(require.resolve("typescript/package.json")), "bin", "tsc")
    const compiled = spawnSync(process.execPath, [tsc, "-p", project], { encoding: "utf8" })
    assert.strictEqual(compiled.status, 0, compiled.stdout)
    const vitest = path.join(path.dirname(require.resolve("vitest/package.json")), "vitest.mjs")
    const run = spawnSync(process.execPath, [vitest, "run"], { cwd: project, encoding: "utf8" })
    assert.strictEqual(run.status, 0, run.stdout)
    assert.match(run.stdout, /Tests .*8 passed/)
  }, 120_000)

  it("lets a library of theirs export what is made of it, with declarations", () => {
    const project = path.join(temporary, "library")
    mkdirSync(project)
    writeFileSync(path.join(project, "package.json"), JSON.stringify({ type: "module" }))
    // Nothing is imported here for the sake of the types that are inferred.
    writeFileSync(
      path.join(project, "library.ts"),
      `import { Effect, Layer, Schema } from "effect"
       import { Cohort, CronJob, Health, Lock, Membership, Plugin, PluginHost, QueueAlarms, SyncOutbox, WorkerId } from "cohort"
       import { auth } from "cohort/plugins"
       import { TestCluster, TestStores } from "cohort/testing"
       import { layerStores as redis, RedisConnection } from "cohort/layers/redis"
       import { layerStores as amqp, AmqpCacheStore } from "cohort/layers/amqp"

       export const names = Plugin.namespace("reports")
       export const topic = names.topic("cancel", Schema.String)
       export const job = names.job("render", Schema.String)
       export const sync = names.sync(Schema.String)
       export const cache = names.cache("pages", Schema.String, { near: true })
       export const lock = Lock.acquire("key")
       export const Reports = Plugin.make(names.name, {
         load: CronJob.make("nightly", "0 3 * * *", () => Effect.void)
       })
       export const host = PluginHost.layer([Reports, auth.Auth.plugin])
       export const bundles = [Cohort.layerMemory(), Cohort.layerRedis(), Cohort.layerAmqp(), Cohort.layerMixed()]
       export const configured = Layer.provide(Cohort.layerConfig, SyncOutbox.layer)
       export const stores = Layer.provide(Cohort.layer, [redis, amqp, AmqpCacheStore.layer])
       export const connection = RedisConnection.layerConfig
       export const beside = Layer.mergeAll(QueueAlarms.layer, WorkerId.layer, Membership.layer, Health.layer)
       export const tests = TestStores.layerTest
       export const cluster = TestCluster.make(3, [Reports])`
    )
    const compilerOptions = { module: "NodeNext", strict: true, declaration: true, skipLibCheck: true, types: [] }
    writeFileSync(path.join(project, "tsconfig.json"), JSON.stringify({ compilerOptions }))
    const tsc = path.join(path.dirname(require.resolve("typescript/package.json")), "bin", "tsc")
    const compiled = spawnSync(process.execPath, [tsc, "-p", project], { encoding: "utf8" })
    assert.strictEqual(compiled.status, 0, compiled.stdout)
    for (const module of [
      "services/internal/validate",
      "layers/internal/Reconnect",
      "testing/internal/x",
      "host/Host"
    ]) {
      assert.throws(
        () => createRequire(path.join(project, "x.js")).resolve(`cohort/${module}`),
        /not defined by "exports"/
      )
    }
  }, 60_000)

  it("has a command that runs", () => {
    const { bin } = JSON.parse(readFileSync(path.join(unpacked, "package.json"), "utf8"))
    const command = path.join(unpacked, bin.cohort)
    assert.match(readFileSync(command, "utf8"), /^#!\/usr\/bin\/env node\n/)
    const env = { PATH: process.env.PATH }
    const run = (...args: ReadonlyArray<string>) =>
      execFileSync(process.execPath, [command, ...args], { cwd: temporary, env, encoding: "utf8" })
    assert.match(run("--version"), /\d/)
    assert.include(run("doctor"), "✓ settings: all can be read")
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
