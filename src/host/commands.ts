/**
 * Commands for whoever operates a cluster: they look at, and change, what is on the
 * backends that the configuration names, for any channel, from a process of their own.
 */
import * as Console from "effect/Console"
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import * as AmqpOptions from "../layers/amqp/AmqpOptions.ts"
import * as Cohort from "../layers/Cohort.ts"
import * as RedisOptions from "../layers/redis/RedisOptions.ts"
import { Tasks } from "../plugins/async-task-manager/index.ts"
import * as EventQueue from "../services/EventQueue.ts"
import * as Job from "../services/Job.ts"
import * as Lock from "../services/Lock.ts"
import * as Doctor from "./Doctor.ts"
import { ofConfig, Refused } from "./Refused.ts"

/** What the flags of every command say. */
export interface Chosen {
  readonly backend: string
  readonly app: Option.Option<string>
}

/** What that comes to. */
export interface Target {
  readonly backends: Effect.Effect<Cohort.Backends, Refused>
  readonly app: string
}

const variables = { queue: "COHORT_QUEUE", lock: "COHORT_LOCK" } as const

/** Runs on one primitive, connecting to nothing else. */
const on = <A, E>(
  { app, backends }: Target,
  primitive: keyof typeof variables,
  run: Effect.Effect<A, E, Cohort.Services>
): Effect.Effect<A, E | unknown> =>
  Effect.gen(function* () {
    const chosen = (yield* backends)[primitive]
    if (chosen === "memory") {
      return yield* new Refused({
        detail: `${variables[primitive]}: what is in memory is seen by its own process only: name what the cluster is on, with --backend redis or amqp`
      })
    }
    const servers = {
      redis: chosen === "redis" ? yield* Effect.mapError(RedisOptions.config, ofConfig) : undefined,
      amqp: chosen === "amqp" ? yield* Effect.mapError(AmqpOptions.config, ofConfig) : undefined
    }
    const options = { ...servers, app, backend: "memory", [primitive]: chosen } as const
    return yield* Effect.provide(run, Cohort.layerMixed(options))
  }).pipe(Effect.provideService(References.MinimumLogLevel, "Error"))

/** A job of whatever shape. */
const jobOf = (channel: string) => Job.make(channel, Schema.Unknown)

const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`

/** Columns as wide as what is in them. */
const table = (rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  return rows
    .map((row) =>
      row
        .map((cell, i) => cell.padEnd(widths[i]!))
        .join("  ")
        .trimEnd()
    )
    .join("\n")
}

/** Text from outside, on one line, without what a terminal would obey. */
const plain = (text: string): string =>
  text.replace(/[\p{Cc}\p{Cf}]/gu, (char) => `\\u${char.codePointAt(0)!.toString(16).padStart(4, "0")}`)

const list = (target: Target, channels: ReadonlyArray<string>) =>
  on(
    target,
    "queue",
    Effect.gen(function* () {
      const rows = [["channel", "ready", "delayed", "in flight", "dead"]]
      for (const channel of channels.length === 0 ? [Tasks.RunTask.channel] : channels) {
        const { dead, delayed, inFlight, ready } = yield* EventQueue.depth(jobOf(channel))
        rows.push([plain(channel), String(ready), String(delayed), String(inFlight), String(dead)])
      }
      yield* Console.log(table(rows))
    })
  )

const dead = (target: Target, channel: string, limit: number) =>
  on(
    target,
    "queue",
    Effect.gen(function* () {
      const letters = yield* EventQueue.deadLetters(jobOf(channel), { limit })
      for (const letter of letters) {
        const { attempts, diedAt, encoded, id, lastError, reason } = letter
        const when = new Date(diedAt.epochMilliseconds).toISOString()
        yield* Console.log(
          `${plain(id)}  ${when}  ${reason} after ${counted(attempts, "attempt")}: ${plain(lastError.split("\n", 1)[0]!)}`
        )
        yield* Console.log(`    ${plain(encoded)}`)
      }
      const all = (yield* EventQueue.depth(jobOf(channel))).dead
      yield* Console.log(`${counted(letters.length, "dead letter")} of ${all}, oldest first`)
    })
  )

const change = (
  target: Target,
  what: "redrive" | "discard",
  channel: string,
  ids: ReadonlyArray<string>,
  all: boolean
) => {
  if (all === ids.length > 0) {
    return Effect.fail(new Refused({ detail: `queue ${what}: name the ids, or all of them with --all` }))
  }
  const apply = what === "redrive" ? EventQueue.redrive : EventQueue.discard
  return on(
    target,
    "queue",
    Effect.flatMap(apply(jobOf(channel), all ? "all" : ids), (count) =>
      Console.log(`${counted(count, "dead letter")} ${what === "redrive" ? "redriven" : "discarded"}`)
    )
  )
}

const locks = (target: Target) =>
  on(
    target,
    "lock",
    Effect.gen(function* () {
      const held = yield* Lock.list
      if (held.length === 0) return yield* Console.log("no lock is held")
      yield* Console.log(
        table([
          ["key", "holder", "fence", "ends within", "waiters"],
          ...held.map(({ fence, holder, key, ttl, waiters }) => [
            plain(key),
            plain(holder),
            String(fence),
            `${Math.ceil(ttl / 1_000)} s`,
            String(waiters.length)
          ])
        ])
      )
    })
  )

const doctor = ({ backends }: Target) =>
  Effect.gen(function* () {
    const findings = yield* Doctor.examine(backends)
    for (const { about, detail, verdict } of findings) {
      yield* Console.log(`${verdict === "right" ? "✓" : "✗"} ${about}: ${detail}`)
    }
    const count = findings.filter(({ verdict }) => verdict === "wrong").length
    if (count > 0) return yield* new Refused({ detail: `${counted(count, "thing")} to see to` })
  })

/** The commands; `target` makes what their common flags say into something to work on, `reported` ends a run. */
export const make = (
  flags: { readonly backend: Flag.Flag<string>; readonly app: Flag.Flag<Option.Option<string>> },
  target: (options: Chosen) => Effect.Effect<Target, Refused>,
  reported: (run: Effect.Effect<unknown, unknown>) => Effect.Effect<void>
) => {
  const run = (options: Chosen, use: (target: Target) => Effect.Effect<unknown, unknown>) =>
    reported(Effect.flatMap(target(options), use))
  const channel = Argument.String("channel").pipe(Argument.withDescription("Name of the channel, inside the app"))
  const ids = Argument.String("id").pipe(Argument.withDescription("Dead letters"), Argument.variadic())
  const all = Flag.Boolean("all").pipe(Flag.withDescription("All dead letters of the channel"), Flag.withDefault(false))
  const changing = (what: "redrive" | "discard", description: string) =>
    Command.make(what, { ...flags, channel, ids, all }, (options) =>
      run(options, (target) => change(target, what, options.channel, options.ids, options.all))
    ).pipe(Command.withDescription(description))

  const queue = Command.make("queue").pipe(
    Command.withDescription("Look at queues and their dead letters"),
    Command.withSubcommands([
      Command.make(
        "list",
        {
          ...flags,
          channels: Argument.String("channel").pipe(
            Argument.withDescription("Names of channels, inside the app; default: those of the plugins here"),
            Argument.variadic()
          )
        },
        (options) => run(options, (target) => list(target, options.channels))
      ).pipe(Command.withDescription("How many jobs channels hold")),
      Command.make(
        "dead",
        {
          ...flags,
          channel,
          limit: Flag.Int("limit").pipe(
            Flag.withDescription("How many, at the most; default: 100"),
            Flag.withDefault(100)
          )
        },
        (options) => run(options, (target) => dead(target, options.channel, options.limit))
      ).pipe(Command.withDescription("The dead letters of a channel, oldest first")),
      changing("redrive", "Make dead letters jobs again, with all their attempts before them"),
      changing("discard", "Forget dead letters")
    ])
  )
  const lock = Command.make("lock").pipe(
    Command.withDescription("Look at locks"),
    Command.withSubcommands([
      Command.make("list", flags, (options) => run(options, locks)).pipe(
        Command.withDescription("The locks that are held: who holds them, fence, time left, how many wait")
      )
    ])
  )
  const examine = Command.make("doctor", flags, (options) => run(options, doctor)).pipe(
    Command.withDescription("Say what is wrong with the configuration and its servers; exit code 1 when something is")
  )
  return [queue, lock, examine] as const
}
