/** What is shipped to run the host somewhere: names, paths and settings are those of the code. Containers are not run. */
import { existsSync, readdirSync, readFileSync } from "node:fs"
import path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Metric from "effect/Metric"
import { parseAllDocuments } from "yaml"
import { sections } from "../../src/host/settings.ts"
import { Metrics } from "../../src/index.ts"

const root = path.join(import.meta.dirname, "..", "..")
const read = (...file: ReadonlyArray<string>) => readFileSync(path.join(root, ...file), "utf8")

/** The documents of a YAML file, which must be well-formed. */
const yaml = (...file: ReadonlyArray<string>): ReadonlyArray<any> =>
  parseAllDocuments(read(...file), { merge: true, uniqueKeys: true }).map((document) => {
    assert.deepStrictEqual([...document.errors, ...document.warnings], [])
    return document.toJS()
  })

const settings = new Set(sections.flatMap(({ settings }) => Object.values(settings).map(({ name }) => name)))
const assertSettings = (names: Iterable<string>, where: string) => {
  for (const name of names) assert.isTrue(settings.has(name), `${where}: ${name} is no setting`)
}
const probes = read("src", "host", "Probes.ts")
const isServed = (url: string) => url === "/metrics" || probes.includes(`"${url}"`)
const seconds = (text: string) => Number(/^(\d+) ?s/.exec(text)![1])

/** For running jobs, the requests before them, and what is around both. */
const drain = 45

describe("the Grafana dashboard and the alerts of Prometheus", () => {
  const { panels } = JSON.parse(read("deploy", "grafana", "cohort.json"))
  const expressions: ReadonlyArray<string> = panels.flatMap(({ targets }: any) => targets.map(({ expr }: any) => expr))

  it("ask for metrics that Prometheus is served, by the name they have there", () => {
    // As effect's PrometheusMetrics writes them.
    const sanitised = (name: string) => name.replace(/[^a-zA-Z0-9_:]/g, "_").replace(/_+/g, "_")
    const served = new Set(["up"])
    const all = Object.values(Metrics).filter((metric): metric is Metric.Metric<any, any> => Metric.isMetric(metric))
    for (const { id, type } of all) {
      const name = sanitised(id)
      if (type === "Histogram") for (const part of ["bucket", "sum", "count"]) served.add(`${name}_${part}`)
      else served.add(name)
    }
    const labels = [
      "cohort_outcome",
      "cohort_job_state",
      "cohort_cache_name",
      "messaging_destination_name",
      "messaging_client_id"
    ]
    const metricsIn = (expressions: ReadonlyArray<string>) => {
      const used = new Set(
        expressions.flatMap((text) => text.match(/\b(up|(cohort|messaging)_\w+)(?=[\s{[)]|$)/g) ?? [])
      )
      for (const label of labels) used.delete(label)
      for (const name of used) assert.isTrue(served.has(name), name)
      return used
    }
    const [{ groups }] = yaml("deploy", "compose", "alerts.yml") as [any]
    const alerts = groups.flatMap(({ rules }: any) => rules.map(({ expr }: any) => expr))
    assert.isAbove(metricsIn(alerts).size, 5)
    const used = metricsIn(expressions)
    assert.isAbove(used.size, 15)
    // Every metric that is kept is on it.
    const shown = (id: string) => [...used].some((name) => name.startsWith(sanitised(id)))
    for (const { id } of all) assert.isTrue(shown(id), `${id} is on no panel`)
  })

  it("have panels that do not overlap", () => {
    const cells = new Set<string>()
    for (const { gridPos, id } of panels) {
      const { h, w, x, y } = gridPos
      assert.isAtMost(x + w, 24)
      for (let i = x; i < x + w; i++) {
        for (let j = y; j < y + h; j++) {
          assert.isFalse(cells.has(`${i},${j}`), `panel ${id}`)
          cells.add(`${i},${j}`)
        }
      }
    }
  })
})

describe("the Dockerfile", () => {
  const dockerfile = read("Dockerfile")

  it("copies what there is, and what is not ignored", () => {
    const ignored = read(".dockerignore").split("\n")
    for (const [, files] of dockerfile.matchAll(/^COPY (?!--from)(.*) \S+$/gm)) {
      for (const file of files!.split(" ")) {
        assert.isTrue(existsSync(path.join(root, file)), file)
        assert.include(ignored, `!${file}`)
      }
    }
  })

  it("runs the command of the package, as nobody special, on the Node it is tested on", () => {
    const { bin, devDependencies } = JSON.parse(read("package.json"))
    assert.include(dockerfile, `node_modules/cohort/${bin.cohort}`)
    assert.match(dockerfile, /^USER node$/m)
    const [major] = devDependencies.node.match(/\d+/)
    for (const [, tag] of dockerfile.matchAll(/^FROM node:(\S+)/gm)) assert.strictEqual(tag, `${major}-slim`)
    assertSettings(/^ENV (.*)$/m.exec(dockerfile)![1]!.match(/\b(?!NODE_ENV)[A-Z_]+(?==)/g)!, "Dockerfile")
    assert.isTrue(isServed(/127\.0\.0\.1:3000([^']*)'/.exec(dockerfile)![1]!))
  })
})

describe("docker-compose.yml", () => {
  const [{ services, volumes }] = yaml("docker-compose.yml") as [any]
  const instances = ["a", "b", "c"]

  it("has three instances behind a proxy that asks whether they are ready", () => {
    const caddy = read("deploy", "compose", "Caddyfile")
    assert.include(caddy, `reverse_proxy ${instances.map((name) => `${name}:3000`).join(" ")} {`)
    assert.isTrue(isServed(/health_uri (\S+)/.exec(caddy)![1]!))
    const [{ scrape_configs }] = yaml("deploy", "compose", "prometheus.yml")
    assert.deepStrictEqual(
      scrape_configs[0].static_configs[0].targets,
      instances.map((name) => `${name}:3000`)
    )
    assert.isTrue(isServed(scrape_configs[0].metrics_path))
  })

  it("gives instances settings that exist, servers that are there, and time to drain", () => {
    for (const name of instances) {
      const { build, depends_on, environment, stop_grace_period } = services[name]
      assert.strictEqual(build, ".")
      assertSettings(Object.keys(environment), name)
      assert.isAtLeast(seconds(stop_grace_period), seconds(environment.COHORT_DRAIN_DELAY) + drain)
      for (const url of ["REDIS_URL", "AMQP_URL", "DATABASE_URL"]) {
        const host = /@(\w+):\d+/.exec(environment[url])![1]!
        assert.containsAllKeys(services[host], ["image", "healthcheck", "volumes"])
        assert.strictEqual(depends_on[host].condition, "service_healthy")
      }
    }
  })

  it("keeps what queues need: Redis with an append-only file that evicts nothing, and volumes", () => {
    assert.include(services.redis.command.join(" "), "--appendonly yes")
    assert.include(services.redis.command.join(" "), "--maxmemory-policy noeviction")
    for (const { image, ports = [], volumes: mounts = [] } of Object.values<any>(services)) {
      assert.match(image, /^[\w/.-]+(:[\w.-]+)?$/)
      for (const port of ports) assert.match(port, /^127\.0\.0\.1:\d+:\d+$/)
      for (const mount of mounts) {
        const [source] = mount.split(":")
        assert.isTrue(source.startsWith("./") ? existsSync(path.join(root, source)) : source in volumes, mount)
      }
    }
  })

  it("has Prometheus and Grafana in a profile, which find the dashboard", () => {
    assert.deepStrictEqual(services.prometheus.profiles, ["observe"])
    assert.deepStrictEqual(services.grafana.profiles, ["observe"])
    const [{ providers }] = yaml("deploy", "grafana", "provisioning", "dashboards.yml")
    assert.isTrue(services.grafana.volumes.some((mount: string) => mount.includes(`:${providers[0].options.path}/`)))
    const [{ datasources }] = yaml("deploy", "grafana", "provisioning", "datasource.yml")
    assert.strictEqual(datasources[0].url, "http://prometheus:9090")
  })
})

describe("the Kubernetes manifests", () => {
  const files = readdirSync(path.join(root, "deploy", "kubernetes"))
  const all = files.flatMap((file) => yaml("deploy", "kubernetes", file))
  const ofKind = (kind: string) => all.filter((document) => document.kind === kind)
  const deployments = ofKind("Deployment")

  it("have three instances that serve requests, and workers that do not", () => {
    const modes = deployments.map(({ spec }) => [
      spec.replicas,
      spec.template.spec.containers[0].env.find(({ name }: any) => name === "WORKER_MODE").value
    ])
    assert.deepStrictEqual(modes, [
      [3, "!"],
      [2, "*"]
    ])
    for (const { metadata, spec } of [...deployments, ...ofKind("PodDisruptionBudget")]) {
      assert.deepStrictEqual(spec.selector.matchLabels, { app: metadata.name })
    }
    assert.lengthOf(ofKind("PodDisruptionBudget"), 2)
    const [{ spec }] = ofKind("Service") as [any]
    assert.isTrue(deployments.some(({ metadata }) => metadata.name === spec.selector.app))
  })

  it("probe what is served, and give time to notice and to drain", () => {
    const [{ data }] = ofKind("ConfigMap") as [any]
    for (const { spec } of deployments) {
      const { containers, terminationGracePeriodSeconds } = spec.template.spec
      const [{ livenessProbe, ports, readinessProbe, startupProbe }] = containers
      for (const { httpGet } of [livenessProbe, readinessProbe, startupProbe]) {
        assert.isTrue(isServed(httpGet.path), httpGet.path)
        assert.isTrue(ports.some(({ name }: any) => name === httpGet.port))
      }
      assert.strictEqual(livenessProbe.httpGet.path, "/livez")
      assert.strictEqual(readinessProbe.httpGet.path, "/readyz")
      const delay = seconds(data.COHORT_DRAIN_DELAY)
      assert.isAtLeast(delay, readinessProbe.periodSeconds * readinessProbe.failureThreshold)
      assert.isAtLeast(terminationGracePeriodSeconds, delay + drain)
    }
  })

  // Kubernetes would: COHORT_PORT=tcp://10.96.0.12:80 for a Service that is called cohort.
  it("let no Service set a variable of the instances", () => {
    assert.isTrue(ofKind("Service").some(({ metadata }) => settings.has(`${metadata.name.toUpperCase()}_PORT`)))
    for (const { spec } of deployments) assert.isFalse(spec.template.spec.enableServiceLinks)
  })

  it("give instances settings that exist; urls are secrets", () => {
    const [{ data }] = ofKind("ConfigMap") as [any]
    const [{ stringData }] = ofKind("Secret") as [any]
    assertSettings([...Object.keys(data), ...Object.keys(stringData)], "config.yaml")
    assert.isFalse(Object.keys(data).some((name) => name.endsWith("_URL")))
    const { version } = JSON.parse(read("package.json"))
    for (const { spec } of deployments) {
      const [{ env, envFrom, image }] = spec.template.spec.containers
      assertSettings(
        env.map(({ name }: any) => name),
        image
      )
      assert.strictEqual(image, `cohort:${version}`)
      assert.deepStrictEqual(envFrom, [{ configMapRef: { name: "cohort" } }, { secretRef: { name: "cohort" } }])
    }
  })
})
