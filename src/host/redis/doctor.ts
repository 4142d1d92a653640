/** What can be wrong with a Redis. */
import * as Effect from "effect/Effect"
import * as References from "effect/References"
import type { Backends } from "../../layers/Cohort.ts"
import * as RedisConnection from "../../layers/redis/RedisConnection.ts"
import * as RedisOptions from "../../layers/redis/RedisOptions.ts"
import { type Examination, type Finding, judged, right, skew, wrong } from "../Doctor.ts"
import { describe } from "../Refused.ts"

const about = "redis"

/** `name:value` lines. */
const fields = (info: string): ReadonlyMap<string, string> =>
  new Map(
    info.split(/\r?\n/).flatMap((line): ReadonlyArray<readonly [string, string]> => {
      const colon = line.indexOf(":")
      return colon < 1 ? [] : [[line.slice(0, colon), line.slice(colon + 1)]]
    })
  )

const isNewEnough = (version: string): boolean => {
  const [major = 0, minor = 0] = version.split(".").map(Number)
  return major > 6 || (major === 6 && minor >= 2)
}

export const examine = (backends: Backends): Examination =>
  Effect.gen(function* () {
    const redis = yield* RedisConnection.make(yield* RedisOptions.config)
    const findings: Array<Finding> = [right(about, "it answers")]
    const info = fields(yield* redis.send<string>("info", [], { retry: true }))
    const keepsJobs = backends.queue === "redis"
    const of = (name: string) => info.get(name) ?? "unknown"

    const version = of("redis_version")
    findings.push(judged(isNewEnough(version), about, `version ${version}`, "6.2 or newer is needed"))
    const isLoaded = of("loading") === "0"
    findings.push(
      judged(isLoaded, about, isLoaded ? "it has its data" : "it is loading its data", "wait until it has them")
    )
    findings.push(
      judged(of("role") === "master", about, `it is a ${of("role")}`, "a replica takes no writes: name the master")
    )
    const isAppending = of("aof_enabled") === "1"
    findings.push(
      judged(
        isAppending || !keepsJobs,
        about,
        isAppending ? "its append-only file is on" : "its append-only file is off",
        "jobs are lost when Redis is killed: set appendonly yes"
      )
    )
    const policy = of("maxmemory_policy")
    findings.push(
      judged(
        policy === "noeviction",
        about,
        `maxmemory-policy is ${policy}`,
        "Redis may evict jobs and locks: set it to noeviction"
      )
    )
    for (const [name, what] of [
      ["aof_last_write_status", "writing its append-only file"],
      ["rdb_last_bgsave_status", "saving its snapshot"]
    ] as const) {
      if (of(name) !== "ok" && of(name) !== "unknown")
        findings.push(wrong(about, `${what} failed: see its log and disk`))
    }
    const [used, max] = [Number(of("used_memory")), Number(of("maxmemory"))]
    if (max > 0) {
      const share = Math.round((100 * used) / max)
      findings.push(judged(share < 90, about, `${share}% of maxmemory is used`, "writes fail when it is full"))
    }
    findings.push(
      yield* skew(
        about,
        Effect.map(redis.send<readonly [string, string]>("time", []), ([seconds, micros]) =>
          Math.floor(Number(seconds) * 1_000 + Number(micros) / 1_000)
        )
      )
    )
    return findings
  }).pipe(
    Effect.scoped,
    Effect.catch((error) => Effect.succeed([wrong(about, describe(error))])),
    // The findings tell what the connection would warn of.
    Effect.provideService(References.MinimumLogLevel, "None")
  )
