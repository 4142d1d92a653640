/**
 * Which Redis the environment names, for people: what is wrong is told with the
 * name of the variable.
 */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as References from "effect/References"
import * as Stream from "effect/Stream"
import * as RedisConnection from "../../layers/redis/RedisConnection.ts"
import * as RedisOptions from "../../layers/redis/RedisOptions.ts"
import type { InvalidInput, Unavailable } from "../../services/Reason.ts"
import { describe, Refused } from "../Refused.ts"

const variables = ["REDIS_URL", "REDIS_SENTINELS", "REDIS_CLUSTER"] as const

/** The first of the variables that name a Redis; none: the host has to bring its own. */
export const named: Effect.Effect<Option.Option<(typeof variables)[number]>> = Effect.gen(function* () {
  for (const variable of variables) {
    const value = yield* Effect.orElseSucceed(Config.option(Config.String(variable)), () => Option.none())
    if (Option.isSome(value) && value.value !== "") return Option.some(variable)
  }
  return Option.none()
})

/** The options of the environment. */
export const options: Effect.Effect<RedisOptions.RedisOptions, Refused> = RedisOptions.config.pipe(
  Effect.mapError((error) => new Refused({ detail: describe(error.cause) }))
)

/** `REDIS_URL: …` of what a layer on Redis fails with. */
const refused = (variable: string, error: InvalidInput | Unavailable): Refused =>
  new Refused({
    detail:
      error._tag === "InvalidInput" ? `${variableOf(error.field)}: ${error.detail}` : `${variable}: ${error.message}`
  })

const variableOf = (field: string): string =>
  field === "sentinel.master"
    ? "REDIS_SENTINEL_MASTER"
    : field.startsWith("sentinel")
      ? "REDIS_SENTINELS"
      : field.startsWith("cluster")
        ? "REDIS_CLUSTER"
        : `REDIS_${field.toUpperCase()}`

/** Connects once, to know. */
export const check = (variable: string): Effect.Effect<void, Refused> =>
  Effect.gen(function* () {
    const found = yield* options
    yield* Effect.mapError(Layer.build(RedisConnection.layer(found)), (error) => refused(variable, error))
  }).pipe(
    Effect.scoped,
    // The error tells what the connection would warn of.
    Effect.provideService(References.MinimumLogLevel, "Error")
  )

/** Removes what an app has stored; its name must not be a part of another's. */
export const forget = (app: string): Effect.Effect<void> =>
  Effect.gen(function* () {
    const redis = yield* RedisConnection.make(yield* options)
    yield* Stream.runForEach(redis.scan(`cohort*${app}*`), (keys) =>
      // One by one: on a Redis Cluster they are on several nodes. All of a turn are one write.
      Effect.forEach(keys, (key) => redis.send("unlink", [key]), { concurrency: "unbounded", discard: true })
    )
  }).pipe(Effect.scoped, Effect.ignore)
