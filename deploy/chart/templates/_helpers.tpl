{{/* Name of all objects of this release. It holds the names of release and chart, so two releases live side by side. */}}
{{- define "automr.name" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "automr.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "automr.labels" -}}
{{ include "automr.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* What the pods of the API and of the worker share. Takes a list: the root, the component. */}}
{{- define "automr.pod" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
# Otherwise Kubernetes sets AUTOMR_PORT=tcp://... for a Service named automr, which is no valid setting.
enableServiceLinks: false
automountServiceAccountToken: false
terminationGracePeriodSeconds: {{ add $root.Values.stopping.drainSeconds 10 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "automr.selector" $root | nindent 8 }}
        app.kubernetes.io/component: {{ $component }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" }}
{{- with index $root.Values $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
volumes:
  - name: bundles
    persistentVolumeClaim: {claimName: {{ $root.Values.bundles.claim }}, readOnly: true}
  - name: tmp
    emptyDir: {sizeLimit: 256Mi}
{{- end }}

{{/* What the containers share. Takes the root. */}}
{{- define "automr.container" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
envFrom:
  - configMapRef: {name: {{ include "automr.name" . }}}
  - secretRef: {name: {{ .Values.secret }}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: bundles, mountPath: /bundles, readOnly: true}
  - {name: tmp, mountPath: /tmp}
{{- end }}

{{/* The pods are replaced when the settings change. */}}
{{- define "automr.annotations" -}}
checksum/config: {{ include (print .Template.BasePath "/config.yaml") . | sha256sum }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}
