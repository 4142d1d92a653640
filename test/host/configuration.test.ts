/** Settings: the table that documents them is made from what the code reads. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { afterEach, assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { page } from "../../scripts/configuration.ts"
import { stopWithin } from "../../src/host/Host.ts"
import { ofConfig } from "../../src/host/Refused.ts"
import { type Section, sections } from "../../src/host/settings.ts"
import { killAll, mainIn, until } from "./support.ts"

const read = (section: Section, environment: Record<string, string>) =>
  section.config
    .parse(ConfigProvider.fromUnknown(environment))
    .pipe(
      Effect.map((found) =>
        JSON.stringify(found, (_, value) => (Redacted.isRedacted(value) ? Redacted.value(value) : value))
      )
    )

/** Something that is not the default, by type; and what makes no sense. */
const samples: ReadonlyArray<readonly [RegExp, string, ReadonlyArray<string>]> = [
  [/^`memory`/, "redis", ["rabbit"]],
  [/^text/, "something", []],
  [/^URL/, "http://there:4318", ["nonsense"]],
  [/^secret/, "s3cret", []],
  [/^duration/, "7 seconds", ["soon", "0 seconds", "-1 second"]],
  [/^whole number/, "7", ["x", "1.5", "-1", "100000"]],
  [/^`true`/, "true", ["perhaps"]],
  [/^`host:port/, "there:7", [":7", "there:0"]]
]

const special: Readonly<Record<string, readonly [string, ReadonlyArray<string>]>> = {
  REDIS_URL: ["redis://:s3cret@there:7", ["s3cret", "amqp://s3cret", "redis://there/s3cret"]],
  AMQP_URL: ["amqp://me:s3cret@there:7", ["s3cret", "redis://s3cret", "amqp://there/a/s3cret"]],
  DATABASE_URL: ["postgres://me:s3cret@there/db", ["s3cret", "mysql://s3cret@there/db", "postgres://s3cret"]],
  WORKER_MODE: ["!", ["!,*,-"]]
}

/** What has to be set as well, to make a difference. */
const beside: Readonly<Record<string, Record<string, string>>> = {
  REDIS_SENTINEL_MASTER: { REDIS_SENTINELS: "there:7" }
}

describe("every setting", () => {
  for (const section of sections) {
    for (const { name, type } of Object.values(section.settings)) {
      const [, usual, usuallyWrong] = samples.find(([pattern]) => pattern.test(type))!
      const [sample, wrong] = special[name] ?? [usual, usuallyWrong]
      it.effect(`${name} is read, and an error that is about it names it`, () =>
        Effect.gen(function* () {
          const others = beside[name] ?? {}
          const without = yield* read(section, others)
          assert.notStrictEqual(yield* read(section, { ...others, [name]: sample }), without)
          assert.strictEqual(yield* read(section, { ...others, [name]: "" }), without)
          for (const value of wrong) {
            const { detail } = ofConfig(yield* Effect.flip(read(section, { ...others, [name]: value })))
            assert.match(detail, new RegExp(`^${name}: `))
            assert.notInclude(detail, "s3cret")
          }
        })
      )
    }
  }
})

it("docs/configuration.md is up to date (npm run docs:configuration)", () => {
  const file = path.join(import.meta.dirname, "..", "..", "docs", "configuration.md")
  assert.strictEqual(readFileSync(file, "utf8"), page())
})

describe("the host", () => {
  afterEach(killAll)

  it.effect("gives an instance that stops the time that its settings give it, and 15 seconds to close", () =>
    Effect.gen(function* () {
      const within = (environment: Record<string, string>) =>
        Effect.map(stopWithin.parse(ConfigProvider.fromUnknown(environment)), Duration.toSeconds)
      assert.strictEqual(yield* within({}), 45)
      assert.strictEqual(yield* within({ COHORT_DRAIN_DELAY: "5 seconds" }), 50)
      const long = { COHORT_DRAIN_DELAY: "1 minute", COHORT_SHUTDOWN_TIMEOUT: "2 minutes" }
      assert.strictEqual(yield* within(long), 195)
    })
  )

  it("reads flags before the environment, and that before .env", { timeout: 60_000 }, async () => {
    const directory = mkdtempSync(path.join(tmpdir(), "cohort-env-"))
    try {
      writeFileSync(path.join(directory, ".env"), 'COHORT_QUEUE="rabbit"\nCOHORT_PORT=many\nCOHORT_INSTANCES=2\n')
      const start = (env: Record<string, string>, ...args: ReadonlyArray<string>) =>
        mainIn(directory, env, "start", ...args)

      const wrong = start({})
      assert.strictEqual(await wrong.exited, 1)
      assert.match(wrong.output, /^cohort: COHORT_QUEUE: expected "memory" .*\n$/)
      const environment = start({ COHORT_QUEUE: "memory" })
      assert.strictEqual(await environment.exited, 1)
      assert.match(environment.output, /^cohort: COHORT_PORT: expected .*\n$/)

      const two = start({ COHORT_QUEUE: "memory", COHORT_PORT: "0" })
      await until("it runs", () => (two.output.includes("2 instances on the memory backend") ? true : undefined))
      const one = start({ COHORT_QUEUE: "memory", COHORT_PORT: "0" }, "--instances", "1")
      await until("it runs", () => (one.output.includes("1 instance on the memory backend") ? true : undefined))
    } finally {
      rmSync(directory, { recursive: true })
    }
  })
})
