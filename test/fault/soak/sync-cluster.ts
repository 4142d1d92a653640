/**
 * Three processes that change collections and start tasks on PostgreSQL and a broker, while they are killed, cut off,
 * and lose their broker; then what every instance has in memory, compared with the database.
 *
 * How stale an instance is: for how long the database has had something newer than what the instance shows, looked at
 * a few times a second.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { PgClient } from "@effect/sql-pg"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql"
import * as PostgresServer from "../../servers/PostgresServer.ts"
import * as RabbitServer from "../../servers/RabbitServer.ts"
import * as RedisServer from "../../servers/RedisServer.ts"
import * as TcpProxy from "../../servers/TcpProxy.ts"
import type { Answer, Command, Options as WorkerOptions } from "./sync-worker.ts"

export interface Options {
  readonly seconds: number
  readonly backend: "redis" | "amqp"
  readonly outbox: boolean
  /** How long instances may take to agree when the faults are over. */
  readonly boundMillis: number
}

export interface Outcome {
  /** What was done and what happened, by name. */
  readonly counts: Record<string, number>
  /** Messages that died with their process, between commit and publish. */
  readonly signalsKilled: number
  /** The longest time that an instance showed what was out of date, while there were faults. */
  readonly stalestMillis: number
  /** How long after the last process died the instances agreed, it being there again; `undefined`: not within the bound. */
  readonly agreedMillis: number | undefined
  /** What still differs at the end of the bound: instance and collection. */
  readonly differing: ReadonlyArray<string>
  /** Tasks that were committed and never ran, and that ran although they were rolled back. */
  readonly tasksLost: number
  readonly tasksUndone: number
}

type State = Record<string, ReadonlyArray<string>>

const script = fileURLToPath(new URL("./sync-worker.ts", import.meta.url))
const processes = 3
/** After which a task of a process that died is run by another: the lease of its job, and the pause before it. */
const leaseMillis = 35_000
const below = (n: number) => Math.floor(Math.random() * n)
const sleep = (millis: number) => new Promise((resolve) => setTimeout(resolve, millis))

/** A process, and what it says. */
class Worker {
  readonly id: string
  readonly child: ChildProcess
  isReady = false
  private waiting: Array<(answer: Answer | undefined) => void> = []

  constructor(options: WorkerOptions, onFailure: () => void) {
    this.id = options.id
    this.child = spawn(process.execPath, [script, JSON.stringify(options)], { stdio: ["pipe", "pipe", "ignore"] })
    this.child.stdin!.on("error", () => undefined)
    this.child.once("exit", (code) => {
      if (code !== null) onFailure()
      this.isReady = false
      for (const answer of this.waiting.splice(0)) answer(undefined)
    })
    createInterface({ input: this.child.stdout! }).on("line", (line) => {
      const answer = JSON.parse(line) as Answer
      if ("ready" in answer) this.isReady = true
      else this.waiting.shift()?.(answer)
    })
  }

  get isAlive(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null
  }

  /** `undefined` when it dies instead, or has nothing to say yet. */
  ask(command: Command): Promise<Answer | undefined> {
    if (!this.isAlive || !this.isReady) return Promise.resolve(undefined)
    return new Promise((resolve) => {
      this.waiting.push(resolve)
      this.child.stdin!.write(`${JSON.stringify(command)}\n`)
    })
  }

  async state(): Promise<State | undefined> {
    const answer = await this.ask({ ask: "state" })
    return answer !== undefined && "state" in answer ? answer.state : undefined
  }

  readonly died = () =>
    new Promise<void>((resolve) => (this.isAlive ? this.child.once("exit", () => resolve()) : resolve()))
}

/** What the database had when, and what the instances showed: by collection. */
class Staleness {
  private readonly history = new Map<string, Array<{ readonly state: string; readonly at: number }>>()
  /** What an instance shows that the history has not: it came and went between two looks. */
  private readonly unseen = new Map<string, { readonly state: string; readonly at: number }>()
  stalest = 0

  stored(state: State, at: number) {
    for (const [name, fields] of Object.entries(state)) {
      const seen = this.history.get(name) ?? []
      this.history.set(name, seen)
      const text = fields.join()
      if (seen.at(-1)?.state !== text) seen.push({ state: text, at })
    }
  }

  shown(id: string, state: State, at: number) {
    for (const [name, seen] of this.history) {
      const text = state[name]?.join()
      const index = seen.findLastIndex(({ state }) => state === text)
      const key = `${id} ${name}`
      if (index !== -1 || text === undefined) {
        this.unseen.delete(key)
        // What it does not know at all has been there since the first.
        const next = seen[index + 1]
        if (next !== undefined) this.stalest = Math.max(this.stalest, at - next.at)
        continue
      }
      const since = this.unseen.get(key)
      if (since?.state === text) this.stalest = Math.max(this.stalest, at - since.at)
      else this.unseen.set(key, { state: text, at })
    }
  }
}

const differences = (id: string, shown: State, stored: State): ReadonlyArray<string> =>
  [...new Set([...Object.keys(shown), ...Object.keys(stored)])]
    .filter((name) => shown[name]?.join() !== stored[name]?.join())
    .map((name) => `${id} ${name}`)

interface Setting extends Options {
  readonly sql: SqlClient.SqlClient
  readonly database: string
  readonly broker: Pick<RedisServer.RedisServer, "kill" | "start" | "port">
  readonly proxies: ReadonlyArray<TcpProxy.TcpProxy>
  readonly deaths: string
  /** Those of now; the last of a place is the one that lives. */
  readonly workers: Array<Worker>
}

const soak = async (setting: Setting): Promise<Outcome> => {
  const { backend, boundMillis, broker, deaths, outbox, proxies, seconds, sql, workers } = setting
  const query = <A>(effect: Effect.Effect<A, unknown>): Promise<A> => Effect.runPromise(effect)
  const counts: Record<string, number> = {}
  const count = (what: string, by = 1) => {
    counts[what] = (counts[what] ?? 0) + by
  }

  let starts = 0
  const start = (place: number, deadly: number) => {
    const scheme = backend === "redis" ? "redis://" : "amqp://guest:guest@"
    const options = {
      app: "soak",
      id: `${"abc"[place]}${++starts}`,
      database: setting.database,
      backend,
      url: `${scheme}127.0.0.1:${proxies[place]!.port}`,
      outbox,
      deadly,
      deaths
    }
    // Without its broker it does not start.
    workers[place] = new Worker(options, () => count("processes that failed"))
  }
  /** Until all are there; those that end are started again. */
  const allReady = async (deadly: number) => {
    const deadline = performance.now() + 60_000
    while (!workers.every(({ isReady }) => isReady)) {
      if (performance.now() > deadline) throw new Error("the processes do not start")
      workers.forEach((worker, place) => {
        if (!worker.isAlive) start(place, deadly)
      })
      await sleep(100)
    }
  }

  const stored = async (): Promise<State> => {
    const rows = await query(
      sql<{ collection: string; name: string | null }>`SELECT c.name AS collection, f.name FROM cohort_collections c
        LEFT JOIN cohort_fields f ON f.app = c.app AND f.collection = c.name ORDER BY c.name, f.number`
    )
    const state: Record<string, Array<string>> = {}
    for (const { collection, name } of rows) {
      state[collection] ??= []
      if (name !== null) state[collection].push(name)
    }
    return state
  }
  const different = async () => {
    const now = await stored()
    const shown = await Promise.all(workers.map(async (worker) => [worker.id, await worker.state()] as const))
    return shown.flatMap(([id, state]) =>
      state === undefined ? [`${id} does not answer`] : differences(id, state, now)
    )
  }

  const deadly = 60
  for (let place = 0; place < processes; place++) start(place, deadly)
  await allReady(deadly)

  const staleness = new Staleness()
  let watching = true
  const watch = async () => {
    while (watching) {
      const before = performance.now()
      const looked = await Promise.all(
        workers.map(async (worker) => ({ id: worker.id, state: await worker.state(), at: performance.now() }))
      )
      // The database after the instances: what they show, it has had.
      staleness.stored(await stored(), performance.now())
      for (const { at, id, state } of looked) if (state !== undefined) staleness.shown(id, state, at)
      await sleep(Math.max(0, 200 - (performance.now() - before)))
    }
  }
  const watched = watch()

  // Whoever dies comes back, as another.
  let restarting = true
  const restart = async () => {
    while (restarting) {
      for (let place = 0; place < processes; place++) {
        if (workers[place]!.isAlive) continue
        await sleep(below(500))
        start(place, deadly)
      }
      await sleep(20)
    }
  }
  const restarted = restart()

  const ends = performance.now() + seconds * 1_000
  let nextRestart = performance.now() + Math.min(seconds * 300, 10_000)
  while (performance.now() < ends) {
    const place = below(processes)
    switch (below(4)) {
      case 0:
        count("processes killed")
        workers[place]!.child.kill("SIGKILL")
        break
      case 1:
        count("connections cut")
        await Effect.runPromise(proxies[place]!.reset)
        break
      case 2: {
        count("connections silenced")
        const proxy = proxies[place]!
        await Effect.runPromise(proxy.blackhole)
        void sleep(500 + below(1_500)).then(() => Effect.runPromise(Effect.andThen(proxy.heal, proxy.reset)))
        break
      }
      default:
        // A quiet while, in which only the messages themselves die.
        await sleep(1_000)
    }
    if (performance.now() > nextRestart) {
      count("brokers restarted")
      await Effect.runPromise(broker.kill)
      await sleep(below(1_000))
      await Effect.runPromise(broker.start)
      nextRestart = performance.now() + 15_000
    }
    await sleep(500 + below(1_500))
  }

  restarting = false
  await restarted
  for (const proxy of proxies) await Effect.runPromise(proxy.heal)
  await allReady(0)
  for (const worker of workers) {
    const answer = await worker.ask({ ask: "quiet" })
    if (answer !== undefined && "counts" in answer) {
      for (const [name, value] of Object.entries(answer.counts)) count(name, value)
    }
  }
  watching = false
  await watched

  // The last word: each dies with one more message, and nothing happens after it that would make the others look.
  let quietSince = 0
  for (let place = 0; place < processes; place++) {
    const worker = workers[place]!
    void worker.ask({ ask: "die", in: `c${place}` })
    await Promise.race([worker.died(), sleep(20_000)])
    if (worker.isAlive) throw new Error("a process does not die")
    quietSince = performance.now()
    start(place, 0)
    await allReady(0)
  }

  let differing = await different()
  while (differing.length > 0 && performance.now() - quietSince < boundMillis) {
    await sleep(100)
    differing = await different()
  }
  const agreed = performance.now() - quietSince

  // Every task that was committed runs, and no other.
  const unended = sql<{ n: number }>`SELECT COUNT(*)::INTEGER AS n FROM cohort_tasks WHERE status <> 'succeeded'`
  const tasksLost = async () => (await query(unended))[0]!.n
  while ((await tasksLost()) > 0 && performance.now() - quietSince < boundMillis + leaseMillis) await sleep(100)
  const undone = await query(
    sql<{ n: number }>`SELECT COUNT(*)::INTEGER AS n FROM soak_ran WHERE text LIKE '%rolled back'`
  )
  count("fields added", (await query(sql<{ n: number }>`SELECT MAX(number) AS n FROM cohort_fields`))[0]!.n)
  count("tasks", (await query(sql<{ n: number }>`SELECT COUNT(*)::INTEGER AS n FROM cohort_tasks`))[0]!.n)

  return {
    counts,
    signalsKilled: existsSync(deaths) ? readFileSync(deaths, "utf8").trim().split("\n").length : 0,
    stalestMillis: Math.round(staleness.stalest),
    agreedMillis: differing.length === 0 ? Math.round(agreed) : undefined,
    differing,
    tasksLost: await tasksLost(),
    tasksUndone: undone[0]!.n
  }
}

export const run = (options: Options): Effect.Effect<Outcome, never, Scope.Scope> =>
  Effect.gen(function* () {
    const database = yield* PostgresServer.make()
    const broker =
      options.backend === "redis" ? yield* RedisServer.make({ fsync: "always" }) : yield* RabbitServer.make()
    const proxies = yield* Effect.forEach(Array.from({ length: processes }), () =>
      TcpProxy.make({ host: "127.0.0.1", port: broker.port })
    )
    const folder = yield* Effect.acquireRelease(
      Effect.sync(() => mkdtempSync(join(tmpdir(), "cohort-soak-"))),
      (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true }))
    )
    const client = PgClient.layer({ url: Redacted.make(database.url), maxConnections: 3 })
    const sql = Context.get(yield* Effect.orDie(Layer.build(client)), SqlClient.SqlClient)
    yield* Effect.orDie(sql`CREATE TABLE soak_ran (text TEXT)`)
    const workers: Array<Worker> = []
    yield* Effect.addFinalizer(() =>
      Effect.promise(async () => {
        for (const { child } of workers) child.kill("SIGKILL")
        await Promise.all(workers.map((worker) => worker.died()))
      })
    )
    const deaths = join(folder, "deaths")
    return yield* Effect.promise(() =>
      soak({ ...options, sql, database: database.url, broker, proxies, deaths, workers })
    )
  })
