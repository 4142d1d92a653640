/**
 * One instance of the soak: the plugins on PostgreSQL and a broker, and fibers that change collections and start tasks.
 *
 * It is told one line of JSON at a time and answers with one. Before it sends what a commit was to tell the others it
 * dies, now and then, and writes that down. It ends with its input.
 */
import { appendFileSync } from "node:fs"
import { createInterface } from "node:readline"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { PgClient } from "@effect/sql-pg"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql"
import { Cohort, Instance, PluginHost, PubSubTransport, SyncOutbox, Transaction } from "../../../src/index.ts"
import { Task, TaskStoreSql, Tasks } from "../../../src/plugins/async-task-manager/index.ts"
import { Collections, CollectionStoreSql, CsvFiles, plugin } from "../../../src/plugins/data-source-main/index.ts"

/** What the driver tells when it starts one. */
export interface Options {
  readonly app: string
  readonly id: string
  readonly database: string
  readonly backend: "redis" | "amqp"
  /** Of the broker. */
  readonly url: string
  readonly outbox: boolean
  /** Of the messages about to be sent after a commit one in so many dies with its process; zero: none, and no changes. */
  readonly deadly: number
  /** Where deaths are written down. */
  readonly deaths: string
}

/** `die`: changes the collection, and dies between the commit and the message. */
export type Command =
  | { readonly ask: "state" }
  | { readonly ask: "quiet" }
  | { readonly ask: "die"; readonly in: string }

export type Answer =
  | { readonly ready: true }
  | { readonly state: Record<string, ReadonlyArray<string>> }
  | { readonly counts: Record<string, number> }

const options = JSON.parse(process.argv[2]!) as Options
const collections = Array.from({ length: 12 }, (_, i) => `c${i}`)

const below = (n: number) => Math.floor(Math.random() * n)
const any = <A>(all: ReadonlyArray<A>): A | undefined => all[below(all.length)]
const tell = (answer: Answer) => process.stdout.write(`${JSON.stringify(answer)}\n`)

/** Whether the next message about a collection is one too many. */
let doomed = false

const Deadly = Layer.effect(
  PubSubTransport.PubSubTransport,
  Effect.map(PubSubTransport.PubSubTransport, (transport) => ({
    ...transport,
    publish: (channel, message) => {
      if (/sync.*data-source-main/.test(channel) && (doomed || (options.deadly > 0 && below(options.deadly) === 0))) {
        appendFileSync(options.deaths, `${options.id}\n`)
        process.kill(process.pid, "SIGKILL")
        return Effect.never
      }
      return transport.publish(channel, message)
    }
  }))
)

const Backend = Layer.unwrap(
  Effect.promise(async () => {
    const { url } = options
    if (options.backend === "redis") {
      const redis = await import("../../../src/layers/redis/index.ts")
      return redis.layerStores.pipe(Layer.provide(redis.RedisConnection.layer({ url, timeout: "2 seconds" })))
    }
    const amqp = await import("../../../src/layers/amqp/index.ts")
    return amqp.layerStores.pipe(Layer.provide(amqp.AmqpConnection.layer({ url, timeout: "2 seconds" })))
  })
)

const Database = Transaction.layer.pipe(
  Layer.provide(PgClient.layer({ url: Redacted.make(options.database), maxConnections: 6 }))
)

const Services = Layer.mergeAll(Tasks.layer, Collections.layer).pipe(
  Layer.provideMerge(Layer.mergeAll(TaskStoreSql.layer, CollectionStoreSql.layer)),
  Layer.provideMerge(Layer.provide(CsvFiles.layerDirectory("/"), NodeServices.layer)),
  Layer.provideMerge(Cohort.layer.pipe(Layer.provide(Deadly.pipe(Layer.provideMerge(Backend))))),
  Layer.provideMerge(options.outbox ? SyncOutbox.layer : Layer.empty),
  Layer.provideMerge(Layer.merge(Database, Instance.layer({ app: options.app, id: options.id })))
)

const counts: Record<string, number> = {}
const count = (what: string) => {
  counts[what] = (counts[what] ?? 0) + 1
}

/** Tasks write down that they ran. */
const Note = Task.type("note", { params: Schema.String, result: Schema.Void, maxRetries: 5 })

let number = 0
const newName = () => `f${process.pid}_${++number}`

const main = Effect.gen(function* () {
  const { addField, create, get, list, removeField } = yield* Collections.Collections
  const tasks = yield* Tasks.Tasks
  const sql = yield* SqlClient.SqlClient
  yield* tasks.register(Note, (text) => Effect.asVoid(sql`INSERT INTO soak_ran (text) VALUES (${text})`))

  const field = () => ({ name: newName(), type: "text", required: false }) as const
  /** Adds a field, or removes one when there are many. */
  const change = (name: string) =>
    Effect.gen(function* () {
      const fields = (yield* get(name)).fields
      if (fields.length < 5) return yield* addField(name, field())
      yield* removeField(name, any(fields)!.name)
    }).pipe(
      Effect.catchTag("CollectionNotFound", () => create({ name, fields: [field()] })),
      Effect.tap(() => Effect.sync(() => count("changes")))
    )

  const round = Effect.suspend((): Effect.Effect<unknown, { readonly _tag: string } | string> => {
    const name = any(collections)!
    switch (below(8)) {
      case 0:
        return Effect.flip(sql.withTransaction(Effect.andThen(change(name), Effect.fail("rolled back"))))
      case 1:
        // In one order, so that two of them do not wait for each other.
        return sql.withTransaction(
          Effect.forEach([name, any(collections)!].sort(), (name) =>
            Effect.andThen(change(name), Effect.sleep(below(20)))
          )
        )
      case 2:
        return tasks.start(Note, `${newName()} committed`)
      case 3:
        return Effect.flip(
          sql.withTransaction(Effect.andThen(tasks.start(Note, `${newName()} rolled back`), Effect.fail("rolled back")))
        )
      default:
        return change(name)
    }
  })
  let quiet = options.deadly === 0
  const fiber = Effect.suspend(() => (quiet ? Effect.never : round)).pipe(
    Effect.catch((error) => Effect.sync(() => count(typeof error === "string" ? error : error._tag))),
    Effect.andThen(Effect.suspend(() => Effect.sleep(100 + below(400)))),
    Effect.forever
  )

  const obey = (command: Command) =>
    Effect.gen(function* () {
      if (command.ask === "quiet") {
        quiet = true
        return tell({ counts })
      }
      if (command.ask === "state") {
        const all = yield* list
        const names = (fields: ReadonlyArray<{ readonly name: string }>) => fields.map(({ name }) => name)
        return tell({ state: Object.fromEntries(all.map(({ fields, name }) => [name, names(fields)])) })
      }
      doomed = true
      yield* Effect.forever(Effect.ignore(Effect.andThen(change(command.in), Effect.sleep(200))))
    })

  const ended = Effect.callback<void>((resume) => {
    const lines = createInterface({ input: process.stdin })
    lines.on("line", (line) => Effect.runFork(obey(JSON.parse(line) as Command)))
    lines.on("close", () => resume(Effect.void))
  })
  tell({ ready: true })
  yield* Effect.all([fiber, fiber], { concurrency: "unbounded" }).pipe(Effect.raceFirst(ended))
})

const Host = PluginHost.layer([Tasks.plugin, plugin])
await main.pipe(
  Effect.provide(Layer.provideMerge(Host, Services)),
  Effect.provide(Logger.layer([])),
  Effect.scoped,
  Effect.runPromise
)
process.exit(0)
