/**
 * `npm run bench -- [suite ...] [--rounds n] [--quick] [--only text]`
 *
 * Every contender of a workload runs in a process of its own, once per round,
 * in turn; the table has the medians over the rounds.
 */
import { execFile, type SpawnSyncOptions, spawnSync } from "node:child_process"
import { existsSync, readFileSync } from "node:fs"
import { cpus } from "node:os"
import { parseArgs, promisify } from "node:util"
import { median, type Suite, type Workload } from "./bench.ts"
import { loadSuite, suiteNames } from "./suites.ts"

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: "string", default: "5" },
    quick: { type: "boolean", default: false },
    only: { type: "string", default: "" }
  }
})
const rounds = values.quick ? 1 : Number(values.rounds)
const millis = values.quick ? 200 : 600
const unknown = positionals.filter((name) => !suiteNames.includes(name))
if (unknown.length > 0 || !Number.isInteger(rounds) || rounds < 1) {
  console.error(`usage: npm run bench -- [${suiteNames.join("|")} ...] [--rounds n] [--quick] [--only text]`)
  process.exit(2)
}

const path = (file: string) => new URL(file, import.meta.url)

/** The peers are not dependencies of cohort: they are installed when first needed. */
const installPeers = () => {
  const { dependencies } = JSON.parse(readFileSync(path("package.json"), "utf8"))
  const missing = Object.keys(dependencies).some((name) => !existsSync(path(`node_modules/${name}/package.json`)))
  if (!missing) return
  console.error("installing the peers in bench/ ...")
  const npm = process.env.npm_execpath
  const args = ["ci", "--no-audit", "--no-fund"]
  const options: SpawnSyncOptions = { cwd: path("."), stdio: ["ignore", "ignore", "inherit"] }
  const { status } = npm ? spawnSync(process.execPath, [npm, ...args], options) : spawnSync("npm", args, options)
  if (status !== 0) process.exit(1)
}

const measure = async (suite: Suite, workload: Workload, contender: string): Promise<number> => {
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [path("contender.ts").pathname, suite.name, workload.name, contender, String(millis)],
    { timeout: 120_000 }
  )
  return Number(stdout)
}

const format = (ns: number): string =>
  ns >= 100_000 ? `${(ns / 1e6).toFixed(2)} ms` : ns >= 10_000 ? `${(ns / 1e3).toFixed(1)} µs` : `${ns.toFixed(0)} ns`

const runWorkload = async (suite: Suite, workload: Workload): Promise<boolean> => {
  const times = workload.contenders.map((): Array<number> => [])
  for (let round = 0; round < rounds; round++) {
    for (const [i, contender] of workload.contenders.entries()) {
      times[i]!.push(await measure(suite, workload, contender.name))
    }
  }
  let allMet = true
  for (const [i, contender] of workload.contenders.entries()) {
    // Within a round the machine was as busy for one as for the other.
    const ratio = median(times[i]!.map((time, round) => time / times[0]![round]!))
    const met = contender.goal === undefined || ratio >= contender.goal
    allMet &&= met
    const goal = contender.goal === undefined ? "" : `≥ ${Number(contender.goal.toFixed(2))}× ${met ? "met" : "MISSED"}`
    console.log(
      `| ${i === 0 ? workload.name.padEnd(26) : " ".repeat(26)} | ${contender.name.padEnd(24)} | ${format(median(times[i]!)).padStart(9)} | ${`${ratio.toFixed(2)}×`.padStart(8)} | ${goal.padEnd(13)} |`
    )
  }
  return allMet
}

installPeers()
console.log(`${cpus()[0]?.model ?? "unknown cpu"} × ${cpus().length}, node ${process.version}, ${rounds} rounds\n`)
console.log(
  `| ${"workload".padEnd(26)} | ${"contender".padEnd(24)} | ${"per op".padStart(9)} | ${"to ours".padStart(8)} | ${"goal".padEnd(13)} |`
)
console.log(`| ${"-".repeat(26)} | ${"-".repeat(24)} | ${"-".repeat(8)}: | ${"-".repeat(7)}: | ${"-".repeat(13)} |`)
let allMet = true
for (const name of positionals.length > 0 ? positionals : suiteNames) {
  const suite = await loadSuite(name)
  await suite.prepare?.()
  for (const workload of suite.workloads) {
    if (workload.name.includes(values.only)) allMet = (await runWorkload(suite, workload)) && allMet
  }
}
console.log(allMet ? "\nevery goal met" : "\nnot every goal met")
// What a suite has started would keep this process alive.
process.exit(0)
