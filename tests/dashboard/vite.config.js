// Serves the page, and passes its questions on to the Prometheus in $PROMETHEUS.
const common = (name) => ({
  find: new RegExp(`^@grafana/${name}$`),
  replacement: new URL(`node_modules/@grafana/${name}/dist/cjs/index.cjs`, import.meta.url).pathname,
});

export default {
  // As CommonJS: some of what Grafana imports has no default export for strict ES modules.
  resolve: { alias: [common("ui"), common("data")] },
  optimizeDeps: { include: ["react", "react-dom/client", "@grafana/ui", "@grafana/data"] },
  server: {
    port: Number(process.env.PORT ?? 17391),
    proxy: { "/api": process.env.PROMETHEUS ?? "http://127.0.0.1:9090" },
    fs: { strict: false },
  },
};
