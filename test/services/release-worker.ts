/**
 * One instance of a release, on a server: says what it hears, and does what it is told, a line of JSON each.
 * `node release-worker.ts <folder of its sources> <redis or amqp> <url> <app> <id> <version of the app>`
 * With `DATABASE_URL` it has an outbox.
 */
import { createInterface } from "node:readline"
import { PgClient } from "@effect/sql-pg"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql"
import * as Tracer from "effect/Tracer"
import type * as Release from "../../src/index.ts"

/** What it can be told, and what it answers. */
export interface Does {
  readonly news: (n: number) => null
  /** In a trace. */
  readonly tracedNews: (n: number) => null
  readonly sync: (n: number) => null
  readonly job: (payload: typeof Payload.Type, maxRetries: number) => null
  readonly tracedJob: (payload: typeof Payload.Type, maxRetries: number) => null
  /** Commits a sync message and a job, and dies before they are sent. */
  readonly commitAndDie: (n: number) => never
  /** Takes jobs from now on, until it rests. */
  readonly work: () => null
  readonly rest: () => null
  /** Dead letters: what they hold, and how many attempts they had. */
  readonly dead: () => ReadonlyArray<readonly [encoded: string, attempts: number]>
  readonly redrive: () => number
  readonly discard: () => number
  readonly set: (key: string, value: number) => null
  readonly get: (key: string) => number | null
  /** The fence, if it is free. */
  readonly lock: (key: string) => number | null
  readonly unlock: () => null
  readonly members: () => ReadonlyArray<readonly [id: string, version: string]>
  /** How many broadcasts it could not read. */
  readonly undecodable: () => number
}

/** What it hears. */
export type Heard =
  | { readonly heard: "ready" | "resync" }
  | { readonly heard: "news" | "sync"; readonly n: number }
  | { readonly heard: "job"; readonly n: number; readonly colour?: string; readonly attempt: number }

const Numbered = Schema.Struct({ n: Schema.Number })
/** `fails` is how many attempts do. The colour came with version 2 of the app. */
const Payload = Schema.Struct({
  n: Schema.Number,
  fails: Schema.optionalKey(Schema.Number),
  colour: Schema.optionalKey(Schema.String)
})

const say = (line: unknown) => Effect.sync(() => void process.stdout.write(`${JSON.stringify(line)}\n`))
const hears = (heard: Heard) => say(heard)

/** Shows its spans to nobody, but is not Effect's own: traces go along with what is sent. */
const tracer = Tracer.make({ span: (options) => new Tracer.NativeSpan(options) })
const traced = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.provideService(Effect.withSpan(effect, "request", { root: true }), Tracer.Tracer, tracer)

if (import.meta.main) {
  const [folder = "", backend, url = "", app, id, version] = process.argv.slice(2)
  const release: typeof Release = await import(`${folder}/index.ts`)
  const { Cache, Cohort, EventQueue, Job, Lock, Membership, Metrics, PubSub, SyncMessage, SyncOutbox, Topic } = release

  const News = Topic.make("news", Numbered)
  const Sync = SyncMessage.make("plugin", Numbered, { debounce: 0 })
  const { colour: _, ...first } = Payload.fields
  const Work = Job.make("work", version === "1" ? Schema.Struct(first) : Payload, {
    backoff: Schedule.spaced("50 millis")
  })

  const program = Effect.gen(function* () {
    yield* PubSub.subscribe(News, ({ n }) => hears({ heard: "news", n }))
    yield* SyncMessage.subscribe(Sync, {
      handle: ({ n }) => hears({ heard: "sync", n }),
      resync: hears({ heard: "resync" })
    })
    const cache = yield* Cache.make("numbers", Schema.Number)
    const membership = yield* Membership.Membership
    let working = yield* Scope.make()
    let holding = yield* Scope.make()
    const publishJob: (...args: Parameters<Does["job"]>) => Effect.Effect<unknown, unknown, any> = (
      payload,
      maxRetries
    ) => EventQueue.publish(Work, payload, { maxRetries, id: `job-${payload.n}` })
    const does: {
      readonly [K in keyof Does]: (...args: Parameters<Does[K]>) => Effect.Effect<unknown, unknown, any>
    } = {
      news: (n) => PubSub.publish(News, { n }),
      tracedNews: (n) => traced(PubSub.publish(News, { n })),
      sync: (n) => SyncMessage.publish(Sync, { n }),
      job: publishJob,
      tracedJob: (payload, maxRetries) => traced(publishJob(payload, maxRetries)),
      commitAndDie: (n) =>
        SqlClient.SqlClient.use((sql) =>
          sql.withTransaction(
            Effect.gen(function* () {
              // The first thing after the commit.
              yield* sql.afterCommit(Effect.sync(() => void process.kill(process.pid, "SIGKILL")))
              yield* SyncMessage.publish(Sync, { n })
              yield* EventQueue.publish(Work, { n }, { afterCommit: true })
            })
          )
        ),
      work: () =>
        EventQueue.subscribe(Work, {
          process: ({ fails = 0, ...rest }, { attempt }) =>
            Effect.andThen(
              hears({ heard: "job", ...rest, attempt }),
              attempt <= fails ? Effect.fail("as it was told") : Effect.void
            )
        }).pipe(Scope.provide(working)),
      rest: () =>
        Effect.gen(function* () {
          yield* Scope.close(working, Exit.void)
          working = yield* Scope.make()
        }),
      dead: () =>
        Effect.map(EventQueue.deadLetters(Work), (letters) =>
          letters.map(({ attempts, encoded }) => [encoded, attempts])
        ),
      redrive: () => EventQueue.redrive(Work, "all"),
      discard: () => EventQueue.discard(Work, "all"),
      set: (key, value) => cache.set(key, value),
      get: (key) => Effect.map(cache.get(key), Option.getOrNull),
      lock: (key) =>
        Lock.tryAcquire(key).pipe(
          Effect.map(Option.match({ onNone: () => null, onSome: ({ fence }) => fence })),
          Scope.provide(holding)
        ),
      unlock: () =>
        Effect.gen(function* () {
          yield* Scope.close(holding, Exit.void)
          holding = yield* Scope.make()
        }),
      members: () => Effect.map(membership.members, (members) => members.map(({ id, version }) => [id, version])),
      undecodable: () => Effect.map(Metric.value(Metrics.messagesUndecodable), ({ count }) => count)
    }
    yield* hears({ heard: "ready" })
    const lines = createInterface(process.stdin)[Symbol.asyncIterator]()
    while (true) {
      const { done, value } = yield* Effect.promise(() => lines.next())
      if (done === true) return
      const [what, ...args] = JSON.parse(value) as [keyof Does, ...ReadonlyArray<never>]
      const answer = yield* (does[what] as (...args: ReadonlyArray<never>) => Effect.Effect<unknown, unknown>)(...args)
      yield* say({ answer: typeof answer === "number" || Array.isArray(answer) ? answer : null })
    }
  })
  const options = { app, id, version, url, timeout: "20 seconds" } as const
  const bare: Layer.Layer<Release.Cohort.Services, unknown> =
    backend === "redis" ? Cohort.layerRedis(options) : Cohort.layerAmqp(options)
  const { DATABASE_URL } = process.env
  const cluster =
    DATABASE_URL === undefined
      ? bare
      : bare.pipe(
          Layer.provide(SyncOutbox.layerWith({ interval: "200 millis" })),
          Layer.provideMerge(PgClient.layer({ url: Redacted.make(DATABASE_URL), maxConnections: 5 }))
        )
  await program.pipe(
    Effect.scoped,
    Effect.provide(Layer.provideMerge(Membership.layerWith({ interval: "500 millis" }), cluster)),
    Effect.provide(Logger.layer([])),
    Effect.runPromise
  )
}
