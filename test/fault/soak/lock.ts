/**
 * Locks on Redis or RabbitMQ while their processes are killed, frozen and cut off.
 * `node test/fault/soak/lock.ts [seconds] [--backend redis|amqp]`, 60 seconds on Redis by default.
 *
 * Processes with fibers contend for a few keys, and tell a witness in a Redis of its own what
 * they do. Meanwhile they are killed (and others come), frozen past their leases, reset,
 * cut off past their leases without a word, and Redis loses its scripts. It ends with the counts, and with 1 if
 * two leases were ever good at once, or if the locks are stuck.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { parseArgs } from "node:util"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { Redis } from "ioredis"
import { Instance, Lock } from "../../../src/index.ts"
import * as RabbitServer from "../../servers/RabbitServer.ts"
import * as RedisServer from "../../servers/RedisServer.ts"
import * as TcpProxy from "../../servers/TcpProxy.ts"
import { lockStore } from "../lockStore.ts"

/** Where the locks are, and what is done to them besides. */
interface Target {
  readonly protocol: "redis" | "amqp"
  readonly port: number
  readonly disturb: Readonly<Record<string, () => Promise<unknown>>>
  /** Of ten, how often a process is killed. */
  readonly kills: number
  /** Between two disturbances, on the average, in milliseconds. */
  readonly pause: number
}

const redisTarget = (server: RedisServer.RedisServer): Target => {
  const redis = new Redis(server.url)
  return {
    protocol: "redis",
    port: server.port,
    disturb: {
      "subscription cuts": () => redis.call("CLIENT", "KILL", "TYPE", "pubsub"),
      flushes: () => redis.script("FLUSH")
    },
    kills: 4,
    pause: 450
  }
}

/** A process that was killed is in the line for two to three seconds: were there more kills, the line would be the dead's. */
const amqpTarget = ({ port }: RabbitServer.RabbitServer): Target => ({
  protocol: "amqp",
  port,
  disturb: {},
  kills: 2,
  pause: 900
})

const targets: Readonly<Record<string, Effect.Effect<Target, never, Scope.Scope>>> = {
  redis: Effect.map(RedisServer.make(), redisTarget),
  amqp: Effect.map(RabbitServer.make(), amqpTarget)
}

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { backend: { type: "string", default: "redis" } }
})
const seconds = Number(positionals[0] ?? 60)
const target = targets[values.backend]
if (target === undefined || !(seconds > 0)) {
  console.error(`usage: lock.ts [seconds] [--backend ${Object.keys(targets).join("|")}]`)
  process.exit(2)
}

const processes = 3
const fibers = 8
const ttl = 1_000
const keys = ["a", "b"]
/** Longer than any freeze and the leases of those who were frozen in the queue. */
const stuckMillis = 20_000

const script = new URL("./lock-worker.ts", import.meta.url).pathname
const below = (n: number) => Math.floor(Math.random() * n)
const sleep = (millis: number) => new Promise((resolve) => setTimeout(resolve, millis))

const isFree = (url: string, key: string) =>
  Effect.scoped(Lock.tryAcquire(key, { timeout: "15 seconds" })).pipe(
    Effect.map(Option.isSome),
    Effect.provide(
      Layer.provide(Lock.layer, lockStore(url, { timeout: "5 seconds" })).pipe(
        Layer.provide(Instance.layer({ app: "soak" }))
      )
    ),
    Effect.runPromise
  )

const soak = async (
  { disturb, kills, pause, port, protocol }: Target,
  proxies: ReadonlyArray<TcpProxy.TcpProxy>,
  witness: string
) => {
  const redis = new Redis(witness)
  const counts: Record<string, number> = {}
  const count = (what: string) => {
    counts[what] = (counts[what] ?? 0) + 1
  }
  const violations: Array<string> = []

  const workers: Array<ChildProcess> = []
  let stopping = false
  const start = (i: number) => {
    const url = `${protocol}://127.0.0.1:${proxies[i]!.port}`
    const worker = spawn(process.execPath, [script, url, witness, String(fibers), String(ttl), ...keys], {
      stdio: ["pipe", "inherit", "inherit"]
    })
    worker.once("exit", (code, signal) => {
      if (signal !== "SIGKILL" && (code !== 0 || !stopping)) violations.push(`a process ended with ${code ?? signal}`)
    })
    workers[i] = worker
  }
  process.once("exit", () => {
    for (const worker of workers) worker.kill("SIGKILL")
  })
  for (let i = 0; i < processes; i++) start(i)
  while ((await redis.hget("soak:counts", "grants")) === null) await sleep(50)

  /** What goes on for a while, at most once for each process. */
  const busy = new Map<number, Promise<unknown>>()
  const meanwhile = (i: number, begin: () => unknown, millis: number, end: () => unknown) => {
    const going = async () => {
      begin()
      await sleep(millis)
      end()
      busy.delete(i)
    }
    busy.set(i, going())
  }
  const run = (effect: Effect.Effect<void>) => Effect.runSync(effect)
  const past = () => ttl * (1.2 + Math.random() * 1.5)
  const others = Object.entries(disturb)

  const ends = performance.now() + seconds * 1_000
  while (performance.now() < ends) {
    const i = below(processes)
    const worker = workers[i]!
    const { blackhole, heal, refuse, reset } = proxies[i]!
    const dice = below(10 + others.length)
    if (dice < kills && !busy.has(i)) {
      count("kills")
      worker.kill("SIGKILL")
      await sleep(below(300))
      start(i)
    } else if (dice < 6) {
      if (busy.has(i)) continue
      const isLong = below(3) > 0
      count(isLong ? "freezes past the lease" : "freezes")
      meanwhile(
        i,
        () => worker.kill("SIGSTOP"),
        isLong ? past() : below(ttl / 2),
        () => worker.kill("SIGCONT")
      )
    } else if (dice < 8) {
      count("resets")
      run(reset)
    } else if (dice < 10) {
      if (busy.has(i)) continue
      const isSilent = below(2) === 0
      count(isSilent ? "black holes past the lease" : "cuts past the lease")
      meanwhile(
        i,
        () => run(isSilent ? blackhole : Effect.andThen(refuse, reset)),
        past(),
        () => run(heal)
      )
    } else {
      const [what, act] = others[dice - 10]!
      count(what)
      await act()
    }
    await sleep(pause * (0.5 + Math.random()))
  }

  await Promise.all(busy.values())
  stopping = true
  const ended = workers.map((worker) => {
    const exit = new Promise((resolve) => worker.once("exit", resolve))
    worker.stdin!.end()
    return exit
  })
  const inTime = await Promise.race([Promise.all(ended).then(() => true), sleep(15_000).then(() => false)])
  if (!inTime) violations.push("a process does not end")

  violations.push(...(await redis.lrange("soak:violations", 0, -1)))
  const told = await redis.hgetall("soak:counts")
  for (const [name, value] of Object.entries(told)) counts[name] = Number(value)
  for (const longest of ["longest gap, ms", "longest wait, ms"]) {
    if ((counts[longest] ?? 0) > stuckMillis) violations.push(`${longest}: ${counts[longest]}`)
  }
  // Nobody is in the way any more: who ended in order has left, and the leases of the dead end with their ttl.
  const url = `${protocol}://127.0.0.1:${port}`
  for (const key of keys) if (!(await isFree(url, key))) violations.push(`${key} is stuck`)
  redis.disconnect()

  console.log(counts)
  for (const violation of violations) console.log(`VIOLATION ${violation}`)
  return violations.length === 0
}

const isWell = await Effect.runPromise(
  Effect.scoped(
    Effect.gen(function* () {
      const witness = yield* RedisServer.make()
      const made = yield* target
      const proxies = yield* Effect.all(
        Array.from({ length: processes }, () => TcpProxy.make({ host: "127.0.0.1", port: made.port }))
      )
      return yield* Effect.promise(() => soak(made, proxies, witness.url))
    })
  )
)
process.exit(isWell ? 0 : 1)
