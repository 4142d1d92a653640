/**
 * Looks at what the configuration names, and says in words what is wrong: settings,
 * the servers of the backends that are used, how they keep what they are given, and
 * whether their clocks agree with this one.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as AmqpOptions from "../layers/amqp/AmqpOptions.ts"
import type * as Cohort from "../layers/Cohort.ts"
import * as RedisOptions from "../layers/redis/RedisOptions.ts"
import { describe, ofConfig, type Refused } from "./Refused.ts"
import * as Server from "./Server.ts"
import { type Section, sections } from "./settings.ts"
import * as Database from "./sql/settings.ts"

export interface Finding {
  readonly verdict: "right" | "wrong"
  /** What was looked at. */
  readonly about: string
  readonly detail: string
}

export const right = (about: string, detail: string): Finding => ({ verdict: "right", about, detail })
export const wrong = (about: string, detail: string): Finding => ({ verdict: "wrong", about, detail })
export const judged = (isRight: boolean, about: string, detail: string, advice: string): Finding =>
  isRight ? right(about, detail) : wrong(about, `${detail}: ${advice}`)

export type Examination = Effect.Effect<ReadonlyArray<Finding>>

/** More than leases, which are counted with a few milliseconds to spare, and the ages of messages should be off. */
const tolerableSkew = 1_000

/** Compares a clock with this one: between asking and answer, by half the time that took at the most. */
export const skew = <E, R>(about: string, read: Effect.Effect<number, E, R>): Effect.Effect<Finding, E, R> =>
  Effect.gen(function* () {
    const before = yield* Clock.currentTimeMillis
    const theirs = yield* read
    const after = yield* Clock.currentTimeMillis
    const off = Math.max(theirs - after, before - theirs, 0)
    return judged(
      off <= tolerableSkew,
      about,
      off === 0 ? "its clock agrees with this one" : `its clock is off by ${off} ms`,
      "synchronise both (NTP)"
    )
  })

/** One that dies is a finding as well. */
const examined = (about: string, examine: Examination): Examination =>
  Effect.catchCause(examine, (cause) => Effect.succeed([wrong(about, describe(Cause.squash(cause)))]))

/** What of the settings cannot be read: each of them, and then what does not go together. */
const unreadable = (sections: ReadonlyArray<Section>): Effect.Effect<Set<string>> =>
  Effect.gen(function* () {
    const found = new Set<string>()
    for (const { config, settings } of sections) {
      for (const one of [...Object.values(settings).map(({ config }) => config), config]) {
        const read = yield* Effect.result(one)
        if (Result.isFailure(read)) found.add(ofConfig(read.failure).detail)
      }
    }
    return found
  })

/** How many letters have to be changed, added, taken away, or swapped with the next one. */
const distance = (a: string, b: string): number => {
  let before: Array<number> = []
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const above = row
    row = [i]
    for (let j = 1; j <= b.length; j++) {
      const changed = above[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      const isSwapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]
      const swapped = isSwapped ? before[j - 2]! + 1 : changed
      row.push(Math.min(above[j]! + 1, row[j - 1]! + 1, changed, swapped))
    }
    before = above
  }
  return row[b.length]!
}

/** Names that are almost those of settings which nobody has set. What else begins like them may be somebody else's. */
const misspelt: Effect.Effect<ReadonlyArray<Finding>> = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const file = yield* Effect.orElseSucceed(fs.readFileString(".env"), () => "")
  const inFile = [...file.matchAll(/^\s*(?:export\s+)?([\w.-]+)\s*[=:]/gm)].map(([, name]) => name!)
  // Not through Config, which reads names that it is asked for and lists none.
  const names = new Set([...Object.keys(process.env), ...inFile])
  const known = sections.flatMap(({ settings }) => Object.values(settings).map(({ name }) => name))
  const missed = known.filter((name) => /^COHORT_|_URL$/.test(name) && !names.has(name))
  return [...names]
    .filter((name) => !known.includes(name))
    .flatMap((name) => {
      // Those of others are short, and close to each other: APP_URL, SMTP_URL.
      const meant = missed.find(
        (setting) => distance(name.toUpperCase(), setting) <= (setting.startsWith("COHORT_") ? 2 : 1)
      )
      return meant === undefined ? [] : [wrong("settings", `${name} is none: ${meant}?`)]
    })
}).pipe(Effect.provide(NodeFileSystem.layer))

/** Everything that there is to find. */
export const examine = (backendsOf: Effect.Effect<Cohort.Backends, Refused>): Examination =>
  Effect.gen(function* () {
    const chosen = yield* Effect.result(backendsOf)
    const used = new Set<Cohort.Backend>(Result.isSuccess(chosen) ? Object.values(chosen.success) : [])
    const isRedisNamed = Option.isSome(yield* Server.named(["REDIS_URL", "REDIS_SENTINELS", "REDIS_CLUSTER"]))
    const isRedisUsed = used.has("redis") || (used.has("amqp") && isRedisNamed)
    const unused: ReadonlyArray<unknown> = [
      ...(isRedisUsed ? [] : [RedisOptions.config]),
      ...(used.has("amqp") ? [] : [AmqpOptions.config])
    ]
    const settings = yield* unreadable(sections.filter(({ config }) => !unused.includes(config)))
    if (Result.isFailure(chosen)) settings.add(chosen.failure.detail)
    if (settings.size > 0) return [...settings].map((detail) => wrong("settings", detail))
    const backends = yield* Effect.fromResult(chosen)
    const findings: Array<Finding> = [right("settings", "all can be read"), ...(yield* misspelt)]
    if (used.has("memory")) {
      findings.push(right("memory", "in this process: nothing to look at, and nothing is kept when it ends"))
    }
    const isDatabaseNamed = (yield* Effect.mapError(Database.config, ofConfig)).url !== undefined
    if (isDatabaseNamed) {
      const { examine } = yield* Effect.promise(() => import("./sql/doctor.ts"))
      findings.push(...(yield* examined("postgresql", examine)))
    }
    // Without a database, what the plugins keep is on Redis as well, if there is one.
    if (used.has("redis") || (used.has("amqp") && !isDatabaseNamed && isRedisNamed)) {
      const { examine } = yield* Effect.promise(() => import("./redis/doctor.ts"))
      findings.push(...(yield* examined("redis", examine(backends))))
    }
    if (used.has("amqp")) {
      const { examine } = yield* Effect.promise(() => import("./amqp/doctor.ts"))
      findings.push(...(yield* examined("rabbitmq", examine(backends))))
    }
    return findings
  }).pipe(Effect.catch(({ detail }) => Effect.succeed([wrong("settings", detail)])))
