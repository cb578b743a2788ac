// The functions that Triton calls.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "body.hpp"
#include "driver.hpp"
#include "triton.hpp"

namespace {

using triton::check;
using triton::Json;
using triton::wrong;

std::string text_of(TRITONSERVER_Message* message) {
    const char* base = nullptr;
    std::size_t bytes = 0;
    check(TRITONSERVER_MessageSerializeToJson(message, &base, &bytes));
    return std::string(base, bytes);
}

/// A model of the repository.
class Model {
public:
    explicit Model(TRITONBACKEND_Model* model) {
        const char* name = nullptr;
        check(TRITONBACKEND_ModelName(model, &name));
        check(TRITONBACKEND_ModelVersion(model, &version_));
        name_ = name;
        TRITONSERVER_Message* message = nullptr;
        check(TRITONBACKEND_ModelConfig(model, 1, &message));
        config_ = Json::parse(text_of(message));
        triton::ignore(TRITONSERVER_MessageDelete(message));
        TRITONBACKEND_ArtifactType type{};
        const char* location = nullptr;
        check(TRITONBACKEND_ModelRepository(model, &type, &location));
        folder_ = location;
        if (config_.value("max_batch_size", 0) != 0) {
            throw wrong("max_batch_size is set; leave it out, because requests share passes by themselves");
        }
        bool complete = false;
        check(TRITONBACKEND_ModelAutoCompleteConfig(model, &complete));
        if (complete) complete_config(model);
        start();
    }

    triton::Driver& driver() { return *driver_; }

private:
    /// A parameter of config.pbtxt; empty if there is none.
    std::string parameter(const char* name) const {
        const auto parameters = config_.find("parameters");
        if (parameters == config_.end() || !parameters->contains(name)) return "";
        return (*parameters)[name].value("string_value", "");
    }

    /// A misspelt parameter would do nothing.
    void check_parameters() const {
        static const std::set<std::string> known{"engine",          "max_sessions",      "max_queue",
                                                 "prepare_seconds", "max_prompt_tokens", "max_tokens",
                                                 "sequence_idle_seconds"};
        const auto parameters = config_.find("parameters");
        if (parameters == config_.end()) return;
        for (auto each = parameters->begin(); each != parameters->end(); ++each) {
            if (!known.count(each.key())) throw wrong("there is no parameter " + each.key() + "; see the README");
        }
    }

    double number(const char* name, double least, double most, double otherwise) const {
        const std::string text = parameter(name);
        if (text.empty()) return otherwise;
        std::istringstream in(text);
        double value = 0;
        if (!(in >> value) || !in.eof() || value < least || value > most) {
            std::ostringstream message;
            message << "the parameter " << name << " is " << text << "; let it be from " << least << " to " << most;
            throw wrong(message.str());
        }
        return value;
    }

    /// Fills what config.pbtxt leaves out. What is there stays.
    void complete_config(TRITONBACKEND_Model* model) {
        const auto tensor = [](const char* name, const std::string& type, std::vector<int> dims) {
            return Json{{"name", name}, {"data_type", type}, {"dims", std::move(dims)}};
        };
        if (config_["input"].empty()) {
            for (const triton::InputKind& kind : triton::input_kinds()) {
                Json input = tensor(kind.name, kind.type, {kind.form == triton::Form::list ? -1 : 1});
                input["optional"] = true;
                config_["input"].push_back(std::move(input));
            }
        }
        if (config_["output"].empty()) {
            config_["output"] = Json::array(
                {tensor("text_output", "TYPE_STRING", {-1}), tensor("finish_reason", "TYPE_STRING", {-1}),
                 tensor("index", "TYPE_INT32", {-1}), tensor("tokens_count", "TYPE_INT32", {-1}),
                 tensor("tokens", "TYPE_INT32", {-1}), tensor("log_probabilities", "TYPE_FP32", {-1}),
                 tensor("top_tokens", "TYPE_INT32", {-1, -1}),
                 tensor("top_log_probabilities", "TYPE_FP32", {-1, -1}), tensor("usage", "TYPE_INT32", {2}),
                 tensor("response", "TYPE_STRING", {1}), tensor("status", "TYPE_INT32", {1})});
        }
        if (!config_.contains("model_transaction_policy")) config_["model_transaction_policy"]["decoupled"] = true;
        // All instances share the models, so one for each GPU would gain nothing.
        if (!config_.contains("instance_group") || config_["instance_group"].empty()) {
            config_["instance_group"] = Json::array({{{"kind", "KIND_CPU"}, {"count", 1}}});
        }
        const std::string text = config_.dump();
        TRITONSERVER_Message* message = nullptr;
        check(TRITONSERVER_MessageNewFromSerializedJson(&message, text.data(), text.size()));
        TRITONSERVER_Error* error = TRITONBACKEND_ModelSetConfig(model, 1, message);
        triton::ignore(TRITONSERVER_MessageDelete(message));
        check(error);
    }

    /// The engine that the parameter "engine" names, or that lies beside the model as model.json.
    cosrt::Engine open() const {
        const std::filesystem::path folder = folder_;
        const std::string engine = parameter("engine");
        if (!engine.empty() && engine.find('{') != std::string::npos) return cosrt::Engine::from_json(engine).value();
        if (!engine.empty()) return cosrt::Engine::open(folder / engine).value();
        for (const auto& file : {folder / std::to_string(version_) / "model.json", folder / "model.json"})
            if (std::filesystem::exists(file)) return cosrt::Engine::open(file).value();
        throw wrong("there is no engine: put its configuration as model.json into " + folder_ + "/" +
                    std::to_string(version_) + ", or name it in the parameter \"engine\"");
    }

    void start() {
        check_parameters();
        triton::Limits limits;
        limits.streams = config_.value(Json::json_pointer("/model_transaction_policy/decoupled"), false);
        limits.max_sessions = static_cast<std::size_t>(number("max_sessions", 1, 4096, 64));
        limits.max_queue = static_cast<std::size_t>(number("max_queue", 1, 1e6, 4096));
        limits.max_prompt_tokens = static_cast<std::uint32_t>(number("max_prompt_tokens", 0, 1e9, 0));
        limits.max_tokens = static_cast<std::uint32_t>(number("max_tokens", 0, 1e9, 0));
        limits.sequence_idle_seconds = number("sequence_idle_seconds", 0, 1e9, 600);
        const double seconds = number("prepare_seconds", 0, 86400, 10);
        cosrt::Engine engine = open();
        for (std::istringstream lines{std::string(engine.describe_table().value())}; !lines.eof();) {
            std::string line;
            std::getline(lines, line);
            if (!line.empty()) triton::log(TRITONSERVER_LOG_INFO, name_ + ": " + line);
        }
        if (seconds > 0) {
            cosrt::PrepareOptions load;
            load.sessions = static_cast<std::uint32_t>(std::min<std::size_t>(limits.max_sessions, 1024));
            load.time = std::chrono::duration<double>(seconds);
            const double share = engine.prepare(load).value();
            triton::log(TRITONSERVER_LOG_INFO,
                        name_ + ": prepared " + std::to_string(std::lround(100 * share)) + " %");
        }
        driver_ = std::make_unique<triton::Driver>(std::move(engine), name_, std::to_string(version_), limits);
    }

    std::string name_, folder_;
    std::uint64_t version_ = 0;
    Json config_;
    std::unique_ptr<triton::Driver> driver_;
};

Model& model_of(TRITONBACKEND_Model* model) {
    void* state = nullptr;
    check(TRITONBACKEND_ModelState(model, &state));
    return *static_cast<Model*>(state);
}

Model& model_of(TRITONBACKEND_ModelInstance* instance) {
    TRITONBACKEND_Model* model = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    return model_of(model);
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
    return triton::guarded([] {
        std::uint32_t major = 0, minor = 0;
        check(TRITONBACKEND_ApiVersion(&major, &minor));
        if (major != TRITON_API_MAJOR || minor < TRITON_API_MINOR) {
            throw triton::Failure(TRITONSERVER_ERROR_UNSUPPORTED,
                                  "this server has version " + std::to_string(major) + "." + std::to_string(minor) +
                                      " of the backend API; take one with 1.19 or a later 1.x, such as Triton 2.51");
        }
        triton::log(TRITONSERVER_LOG_INFO, "version " + std::string(cosrt::version()));
    });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
    return triton::guarded([=] {
        auto state = std::make_unique<Model>(model);
        check(TRITONBACKEND_ModelSetState(model, state.get()));
        state.release();  // ModelFinalize frees it
    });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
    return triton::guarded([=] { delete &model_of(model); });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
    return triton::guarded([=] { model_of(instance).driver().drain(instance); });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                                TRITONBACKEND_Request** requests,
                                                                const std::uint32_t count) {
    // Triton keeps the requests if this fails, so nothing may fail once one of them was taken.
    return triton::guarded([=] {
        triton::Driver& driver = model_of(instance).driver();
        for (std::uint32_t i = 0; i < count; i++) driver.take(instance, requests[i]);
    });
}
