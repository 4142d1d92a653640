/**
 * Locks on Redis while their processes are killed and frozen.
 * `node test/fault/soak/lock.ts [seconds]`, 60 by default.
 *
 * Processes with fibers contend for a few keys, and tell a witness in Redis what
 * they do. Meanwhile they are killed (and others come), frozen past their leases,
 * and lose their subscriptions and scripts. It ends with the counts, and with 1 if
 * two leases were ever good at once, or if the locks are stuck.
 */
import { type ChildProcess, spawn } from "node:child_process"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { Redis } from "ioredis"
import { Instance, Lock } from "../../../src/index.ts"
import { RedisConnection, RedisLockStore } from "../../../src/layers/redis/index.ts"
import * as RedisServer from "../../servers/RedisServer.ts"

const seconds = Number(process.argv[2] ?? 60)
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
  Effect.scoped(Lock.tryAcquire(key, { timeout: "5 seconds" })).pipe(
    Effect.map(Option.isSome),
    Effect.provide(
      Layer.provide(Lock.layer, [
        Layer.provide(RedisLockStore.layer, RedisConnection.layer({ url })),
        Instance.layer({ app: "soak" })
      ])
    ),
    Effect.runPromise
  )

const soak = async (server: RedisServer.RedisServer) => {
  const redis = new Redis(server.url)
  const counts: Record<string, number> = { kills: 0, freezes: 0, "freezes past the lease": 0, cuts: 0, flushes: 0 }
  const count = (what: string) => {
    counts[what] = (counts[what] ?? 0) + 1
  }
  const violations: Array<string> = []

  const workers: Array<ChildProcess> = []
  let stopping = false
  const start = (i: number) => {
    const worker = spawn(process.execPath, [script, server.url, String(fibers), String(ttl), ...keys], {
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

  const frozen = new Set<ChildProcess>()
  const freeze = async (worker: ChildProcess, millis: number) => {
    frozen.add(worker)
    worker.kill("SIGSTOP")
    await sleep(millis)
    worker.kill("SIGCONT")
    frozen.delete(worker)
  }

  const ends = performance.now() + seconds * 1_000
  while (performance.now() < ends) {
    const i = below(processes)
    const dice = below(10)
    if (dice < 4) {
      count("kills")
      workers[i]!.kill("SIGKILL")
      await sleep(below(300))
      start(i)
    } else if (dice < 8 && !frozen.has(workers[i]!)) {
      const isLong = below(3) > 0
      count(isLong ? "freezes past the lease" : "freezes")
      void freeze(workers[i]!, isLong ? ttl * (1.2 + Math.random() * 1.5) : below(ttl / 2))
    } else if (dice === 8) {
      count("cuts")
      await redis.call("CLIENT", "KILL", "TYPE", "pubsub")
    } else if (dice === 9) {
      count("flushes")
      await redis.script("FLUSH")
    }
    await sleep(200 + below(500))
  }

  while (frozen.size > 0) await sleep(50)
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
  for (const key of keys) if (!(await isFree(server.url, key))) violations.push(`${key} is stuck`)
  redis.disconnect()

  console.log(counts)
  for (const violation of violations) console.log(`VIOLATION ${violation}`)
  return violations.length === 0
}

const isWell = await Effect.runPromise(
  Effect.scoped(Effect.flatMap(RedisServer.make(), (server) => Effect.promise(() => soak(server))))
)
process.exit(isWell ? 0 : 1)
