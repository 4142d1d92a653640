/**
 * Looks at what the configuration names, and says in words what is wrong: settings,
 * the servers of the backends that are used, how they keep what they are given, and
 * whether their clocks agree with this one.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as AmqpOptions from "../layers/amqp/AmqpOptions.ts"
import * as Cohort from "../layers/Cohort.ts"
import * as RedisOptions from "../layers/redis/RedisOptions.ts"
import * as Host from "./Host.ts"
import { describe, ofConfig, type Refused } from "./Refused.ts"
import * as Server from "./Server.ts"
import { hostSettings } from "./settings.ts"
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

/** What of the settings cannot be read. */
const unreadable = (configs: ReadonlyArray<Config.Config<unknown>>): Effect.Effect<ReadonlyArray<Finding>> =>
  Effect.map(
    Effect.forEach(configs, (config) =>
      Effect.match(config, {
        onSuccess: () => [],
        onFailure: (error) => [wrong("settings", ofConfig(error).detail)]
      })
    ),
    (found) => found.flat()
  )

/** Everything that there is to find. */
export const examine = (backendsOf: Effect.Effect<Cohort.Backends, Refused>): Examination =>
  Effect.gen(function* () {
    const backends = yield* backendsOf
    const used = new Set<Cohort.Backend>(Object.values(backends))
    const isRedisNamed = Option.isSome(yield* Server.named(["REDIS_URL", "REDIS_SENTINELS", "REDIS_CLUSTER"]))
    const isRedisUsed = used.has("redis") || (used.has("amqp") && isRedisNamed)
    const settings = yield* unreadable([
      Cohort.config,
      ...Object.values({ ...hostSettings, ...Host.settings }).map(({ config }) => config),
      Database.config,
      ...(isRedisUsed ? [RedisOptions.config] : []),
      ...(used.has("amqp") ? [AmqpOptions.config] : [])
    ])
    if (settings.length > 0) return settings
    const findings: Array<Finding> = [right("settings", "all can be read")]
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
