"""The operators that ONNX Runtime has; made by ``tools/runtime_operators.py``."""

Kernels = dict[str, tuple[tuple[int, int | None], ...]]
"""For each operator the versions for which there are kernels; None: that very version, or no later
one is known. Operators that are not ONNX's own begin with their domain and "::".
"""


def _kernels(text: str) -> Kernels:
    table: Kernels = {}
    for entry in text.split():
        name, _, versions = entry.rpartition(":")
        table[name] = tuple(_range(part) for part in versions.split(","))
    return table


def _range(text: str) -> tuple[int, int | None]:
    if text.endswith("+"):
        return int(text[:-1]), None
    start, _, end = text.partition("-")
    return int(start), int(end or start)


CPU = _kernels(
    """
    Abs:6-12,13+ Acos:7-21,22+ Acosh:9-21,22+ Add:7-12,13,14+ Affine:1+ AffineGrid:20+ And:7+
    ArgMax:1-10,11-12,13+ ArgMin:1-10,11-12,13+ Asin:7-21,22+ Asinh:9-21,22+ Atan:7-21,22+
    Atanh:9-21,22+ Attention:23,24+ AveragePool:7-9,10,11-18,19-21,22+
    BatchNormalization:7-8,9-13,14,15+ BitCast:26+ BitShift:11-27,28+ BitwiseAnd:18+ BitwiseNot:18+
    BitwiseOr:18+ BitwiseXor:18+ BlackmanWindow:17+ Cast:6-12,13-18,19-20,21-22,23,24,25-27,28+
    Ceil:6-12,13+ Celu:12-27,28+ Clip:6-10,11,12,13+ Col2Im:18+ Compress:9-10,11-27,28+
    Concat:4-10,11-12,13+ ConcatFromSequence:11+ ConstantOfShape:9-19,20,21-22,23,24,25+
    Conv:1-10,11-21,22+ ConvInteger:10+ ConvTranspose:1-10,11-21,22+ Cos:7-21,22+ Cosh:9-21,22+
    Crop:1+ CumProd:26+ CumSum:11-13,14+ DFT:17-19,20+ DeformConv:19-21,22+
    DepthToSpace:1-10,11-12,13-27,28+ DequantizeLinear:10-12,13-18,19-20,21-22,23,24,25+
    Det:11-21,22+ Div:7-12,13,14+ Dropout:7-9,10-11,12,13-21,22+ DynamicQuantizeLinear:11+
    DynamicSlice:1+ Einsum:12-27,28+ Elu:6-21,22+ Equal:7-10,11-12,13-18,19+ Erf:9-12,13+
    Exp:6-12,13+ Expand:8-12,13+ EyeLike:9-21,22+ Flatten:1-8,9-10,11-12,13-20,21-22,23,24,25+
    Floor:6-12,13+ GRU:7-13,14-21,22+ Gather:1-10,11-12,13+ GatherElements:11-12,13+
    GatherND:11,12,13+ Gelu:20+ Gemm:7-8,9-10,11-12,13+ GlobalAveragePool:1-21,22+ GlobalLpPool:2+
    GlobalMaxPool:1-21,22+ Greater:7-8,9-12,13+ GreaterOrEqual:12-15,16+ GridSample:16-19,20-21,22+
    HammingWindow:17+ HannWindow:17+ HardSigmoid:6-21,22+ Hardmax:1-10,11-12,13+
    Identity:1-12,13,14-15,16-18,19-20,21-22,23,24,25+
    If:1-10,11-12,13-15,16-18,19-20,21-22,23,24,25+ ImageScaler:1+ InstanceNormalization:6-21,22+
    IsInf:10-19,20+ IsNaN:9-12,13-19,20+ LRN:1-12,13+ LSTM:7-13,14-21,22+
    LayerNormalization:1-16,17+ LeakyRelu:6-15,16+ Less:7-8,9-12,13+ LessOrEqual:12-15,16+
    Log:6-12,13+ LogSoftmax:1-10,11-12,13+ Loop:1-10,11-12,13-15,16-18,19-20,21-22,23,24,25+
    LpNormalization:1-21,22+ LpPool:2-10,11-17,18-21,22+ MatMul:1-8,9-12,13+ MatMulInteger:10+
    Max:6-7,8-11,12,13+ MaxPool:1-7,8-11,12-21,22+ MaxRoiPool:1+ MaxUnpool:9-10,11-21,22+
    Mean:6-7,8-12,13+ MeanVarianceNormalization:1-8,9-12,13+ MelWeightMatrix:17+ MemcpyFromHost:1+
    MemcpyToHost:1+ Min:6-7,8-11,12,13+ Mod:10-12,13-27,28+ Mul:7-12,13,14+ Multinomial:7+
    Neg:6-12,13+ NonMaxSuppression:10,11+ NonZero:9-12,13+ Not:1+ OneHot:9-10,11-27,28+ Optional:15+
    OptionalGetElement:15-17,18+ OptionalHasElement:15-17,18+ Or:7+ PRelu:7-8,9-15,16+
    Pad:2-10,11-12,13-17,18,19-20,21-22,23,24,25+ ParametricSoftplus:1+ Pow:7-11,12,13-14,15+
    QLinearConv:10+ QLinearMatMul:10-20,21+ QuantizeLinear:10-12,13-18,19-20,21-22,23,24,25+
    RMSNormalization:23+ RNN:7-13,14-21,22+ RandomNormal:1+ RandomNormalLike:1+ RandomUniform:1+
    RandomUniformLike:1+ Range:11-26,27+ Reciprocal:6-12,13+ ReduceL1:1-10,11-12,13-17,18+
    ReduceL2:1-10,11-12,13-17,18+ ReduceLogSum:1-10,11-12,13-17,18+
    ReduceLogSumExp:1-10,11-12,13-17,18+ ReduceMax:1-10,11,12,13-17,18-19,20+
    ReduceMean:1-10,11-12,13-17,18+ ReduceMin:1-10,11,12,13-17,18-19,20+
    ReduceProd:1-10,11-12,13-17,18+ ReduceSum:1-10,11-12,13+ ReduceSumSquare:1-10,11-12,13-17,18+
    RegexFullMatch:20+ Relu:6-12,13,14+ Reshape:1-4,5-12,13,14-18,19-20,21-22,23,24,25+
    Resize:10,11-12,13-17,18,19+ ReverseSequence:10-27,28+ RoiAlign:10-15,16+ RotaryEmbedding:23+
    Round:11-21,22+ STFT:17+ Scale:1+ ScaledTanh:1+ Scan:8,9-10,11-15,16-18,19-20,21-22,23,24,25+
    Scatter:9-10 ScatterElements:11-12,13-15,16-17,18+ ScatterND:11-12,13-15,16-17,18+ Selu:6-21,22+
    SequenceAt:11+ SequenceConstruct:11+ SequenceEmpty:11+ SequenceErase:11+ SequenceInsert:11+
    SequenceLength:11+ Shape:1-12,13-14,15-18,19-20,21-22,23,24,25+ Shrink:9+ Sigmoid:6-12,13+
    Sign:9-12,13+ SimplifiedLayerNormalization:1+ Sin:7-21,22+ Sinh:9-21,22+
    Size:1-12,13-18,19-20,21-22,23,24,25+ Slice:1-9,10,11-12,13+ Softmax:1-10,11-12,13+
    Softplus:1-21,22+ Softsign:1-21,22+ SpaceToDepth:1-12,13-27,28+ Split:2-10,11-12,13-17,18+
    SplitToSequence:11-23,24+ Sqrt:6-12,13+ Squeeze:1-10,11-12,13-20,21-22,23,24,25+
    StringConcat:20+ StringNormalizer:10+ StringSplit:20+ Sub:7-12,13,14+ Sum:6-7,8-12,13+
    Tan:7-21,22+ Tanh:6-12,13+ TensorScatter:24+ TfIdfVectorizer:9+ ThresholdedRelu:1-9,10-21,22+
    Tile:6-12,13+ TopK:1-9,10,11-23,24+ Transpose:1-12,13-20,21-22,23,24,25+ Trilu:14+
    Unique:11-27,28+ Unsqueeze:1-10,11-12,13-20,21-22,23,24,25+ Upsample:7-8,9 Where:9-15,16+ Xor:7+
    ai.onnx.ml::ArrayFeatureExtractor:1+ ai.onnx.ml::Binarizer:1+ ai.onnx.ml::CastMap:1+
    ai.onnx.ml::CategoryMapper:1+ ai.onnx.ml::DictVectorizer:1+ ai.onnx.ml::FeatureVectorizer:1+
    ai.onnx.ml::Imputer:1+ ai.onnx.ml::LabelEncoder:1,2-3,4+ ai.onnx.ml::LinearClassifier:1+
    ai.onnx.ml::LinearRegressor:1+ ai.onnx.ml::Normalizer:1+ ai.onnx.ml::OneHotEncoder:1+
    ai.onnx.ml::SVMClassifier:1+ ai.onnx.ml::SVMRegressor:1+ ai.onnx.ml::Scaler:1+
    ai.onnx.ml::TreeEnsemble:5+ ai.onnx.ml::TreeEnsembleClassifier:1-2,3+
    ai.onnx.ml::TreeEnsembleRegressor:1-2,3+ ai.onnx.ml::ZipMap:1+
    com.microsoft.nchwc::AveragePool:1+ com.microsoft.nchwc::Conv:1+
    com.microsoft.nchwc::GlobalAveragePool:1+ com.microsoft.nchwc::GlobalMaxPool:1+
    com.microsoft.nchwc::MaxPool:1+ com.microsoft.nchwc::ReorderInput:1+
    com.microsoft.nchwc::ReorderOutput:1+ com.microsoft.nchwc::Upsample:1+
    com.microsoft::Attention:1+ com.microsoft::AttnLSTM:1+ com.microsoft::BeamSearch:1+
    com.microsoft::BiasGelu:1+ com.microsoft::BifurcationDetector:1+
    com.microsoft::BranchwiseRMSNorm:1+ com.microsoft::CDist:1+
    com.microsoft::CausalConvWithState:1+ com.microsoft::ConvTransposeWithDynamicPads:1+
    com.microsoft::CropAndResize:1+ com.microsoft::DecoderMaskedMultiHeadAttention:1+
    com.microsoft::DequantizeLinear:1+ com.microsoft::DynamicQuantizeLSTM:1+
    com.microsoft::DynamicQuantizeMatMul:1+ com.microsoft::DynamicTimeWarping:1+
    com.microsoft::EmbedLayerNormalization:1+ com.microsoft::EngramGate:1+
    com.microsoft::ExpandDims:1+ com.microsoft::FastGelu:1+ com.microsoft::FusedConv:1+
    com.microsoft::FusedGemm:1+ com.microsoft::FusedMatMul:1+ com.microsoft::GatedAdd:1+
    com.microsoft::GatedDeltaNet:1+ com.microsoft::GatedRMSNorm:1+
    com.microsoft::GatherBlockQuantized:1+ com.microsoft::GatherND:1+ com.microsoft::GatherPacked:1+
    com.microsoft::Gelu:1+ com.microsoft::GreedySearch:1+ com.microsoft::GridSample:1+
    com.microsoft::GroupQueryAttention:1+ com.microsoft::HyperConnectionPostMix:1+
    com.microsoft::HyperConnectionPreMix:1+ com.microsoft::Inverse:1+
    com.microsoft::LinearAttention:1+ com.microsoft::LinearAttentionGate:1+
    com.microsoft::MRotaryEmbedding:1+ com.microsoft::MatMulBnb4:1+ com.microsoft::MatMulFpQ4:1+
    com.microsoft::MatMulInteger16:1+ com.microsoft::MatMulIntegerToFloat:1+
    com.microsoft::MatMulNBits:1+ com.microsoft::MaxpoolWithMask:1+ com.microsoft::MoE:1+
    com.microsoft::MoEGroupRouter:1+ com.microsoft::MultiHeadAttention:1+
    com.microsoft::MurmurHash3:1+ com.microsoft::NGramHashMapping:1+
    com.microsoft::NGramRepeatBlock:1+ com.microsoft::NhwcMaxPool:1+ com.microsoft::Pad:1+
    com.microsoft::QAttention:1+ com.microsoft::QEmbedLayerNormalization:1+ com.microsoft::QGemm:1+
    com.microsoft::QLinearAdd:1+ com.microsoft::QLinearAveragePool:1+
    com.microsoft::QLinearConcat:1+ com.microsoft::QLinearConv:1+
    com.microsoft::QLinearGlobalAveragePool:1+ com.microsoft::QLinearLeakyRelu:1+
    com.microsoft::QLinearMul:1+ com.microsoft::QLinearSigmoid:1+ com.microsoft::QLinearSoftmax:1+
    com.microsoft::QLinearWhere:1+ com.microsoft::QMoE:1+ com.microsoft::QuantizeLinear:1+
    com.microsoft::QuickGelu:1+ com.microsoft::Range:1+ com.microsoft::RotaryEmbedding:1+
    com.microsoft::SampleOp:1+ com.microsoft::Sampling:1+ com.microsoft::ScaledSiLU:1+
    com.microsoft::SkipLayerNormalization:1+ com.microsoft::SkipSimplifiedLayerNormalization:1+
    com.microsoft::SparseAttention:1+ com.microsoft::SparseToDenseMatMul:1+
    com.microsoft::Tokenizer:1+ com.microsoft::TransposeMatMul:1+ com.microsoft::Trilu:1+
    com.microsoft::UnfoldTensor:1+ com.microsoft::Unique:1+
    com.microsoft::VarlenCausalConvWithState:1+ com.microsoft::VarlenNGramHashMapping:1+
    com.microsoft::WhisperBeamSearch:1+ com.microsoft::WordConvEmbedding:1+
    """
)
"""Kernels of the CPU execution provider of onnxruntime 1.32.0."""

CUDA = _kernels(
    """
    Abs:6-12,13+ Add:7-12,13,14+ Affine:1+ And:7+ ArgMax:1-11,12,13+ ArgMin:1-11,12,13+
    Attention:23,24+ AveragePool:7-9,10,11-18,19-21,22+ BatchNormalization:7-8,9-13,14,15+
    Cast:6-8,9-12,13-18,19-20,21-22,23-24,25+ Ceil:6-12,13+ Clip:6-10,11,12,13+ Compress:9-10,11+
    Concat:4-10,11-12,13+ ConcatFromSequence:11+ ConstantOfShape:9-20,21-22,23-24,25+
    Conv:1-10,11-21,22+ ConvTranspose:1-10,11-21,22+ Cos:7-21,22+ Crop:1+ CumSum:11-13,14+
    DeformConv:19-21,22+ DepthToSpace:1-10,11-12,13+
    DequantizeLinear:10-12,13-18,19-20,21-22,23-24,25+ Div:7-12,13,14+ Dropout:7-9,10-11,12,13+
    DynamicSlice:1+ Einsum:12+ Elu:6+ Equal:7-10,11-12,13-18,19+ Erf:9-12,13+ Exp:6-12,13+
    Expand:8-12,13+ EyeLike:9+ Flatten:1-8,9-10,11-12,13-20,21-22,23-24,25+ Floor:6-12,13+
    GRU:7-13,14-21,22+ Gather:1-10,11-12,13+ GatherElements:11-12,13+ GatherND:11,12,13+ Gelu:20+
    Gemm:7-8,9-10,11-12,13+ GlobalAveragePool:1-21,22+ GlobalMaxPool:1-21,22+ Greater:7-8,9-12,13+
    GreaterOrEqual:12-15,16+ GridSample:16-19,20-21,22+ HardSigmoid:6-21,22+ HardSwish:14-21,22+
    Identity:1-12,13,14-18,19-20,21-22,23-24,25+ If:1-10,11-12,13-18,19-20,21-22,23-24,25+
    ImageScaler:1+ InstanceNormalization:6+ IsInf:10-19,20+ IsNaN:9-12,13-19,20+ LRN:1-12,13+
    LSTM:7-13,14-21,22+ LayerNormalization:1-16,17+ LeakyRelu:6-15,16+ Less:7-8,9-12,13+
    LessOrEqual:12-15,16+ Log:6-12,13+ LogSoftmax:1-10,11-12,13+
    Loop:1-10,11-12,13-18,19-20,21-22,23-24,25+ LpNormalization:1-21,22+ MatMul:1-8,9-12,13+
    MatMulInteger:10+ Max:6-11,12,13+ MaxPool:1-7,8-9,10,11,12+ MemcpyFromHost:1+ MemcpyToHost:1+
    Min:6-11,12,13+ Mod:10-12,13+ Mul:7-12,13,14+ Neg:6-12,13+ NonMaxSuppression:10,11+
    NonZero:9-12,13+ Not:1+ OneHot:11+ Or:7+ PRelu:7-8,9-15,16+
    Pad:2-10,11-12,13-17,18,19-20,21-22,23,24,25+ ParametricSoftplus:1+ Pow:7-11,12,13-14,15+
    QuantizeLinear:10-12,13-18,19-20,21-22,23-24,25+ RMSNormalization:23+ RNN:7-13,14-21,22+
    RandomNormal:1-21,22+ RandomNormalLike:1-21,22+ RandomUniform:1-21,22+
    RandomUniformLike:1-21,22+ Range:11-26,27+ Reciprocal:6-12,13+ ReduceL1:1-17,18+
    ReduceL2:1-17,18+ ReduceLogSum:1-17,18+ ReduceLogSumExp:1-17,18+ ReduceMax:1-17,18-19,20+
    ReduceMean:1-17,18+ ReduceMin:1-17,18-19,20+ ReduceProd:1-17,18+ ReduceSum:1-12,13+
    ReduceSumSquare:1-17,18+ Relu:6-12,13,14+ Reshape:1-4,5-12,13,14-18,19-20,21-22,23-24,25+
    Resize:10,11-12,13-17,18,19+ ReverseSequence:10+ RoiAlign:10-15,16-21,22+ RotaryEmbedding:23+
    Round:11-21,22+ ScaledTanh:1+ Scan:8,9-10,11-15,16-18,19-20,21-22,23-24,25+ Scatter:9-10
    ScatterElements:11-12,13-15,16-17,18+ ScatterND:11-12,13-15,16-17,18+ Selu:6+ SequenceAt:11+
    SequenceConstruct:11+ SequenceEmpty:11+ SequenceErase:11+ SequenceInsert:11+ SequenceLength:11+
    Shape:1-12,13-14,15-18,19-20,21-22,23-24,25+ Shrink:9+ Sigmoid:6-12,13+ Sign:13+
    SimplifiedLayerNormalization:1+ Sin:7-21,22+ Size:1-12,13-20,21-22,23-24,25+
    Slice:1-9,10,11-12,13+ Softmax:1-10,11-12,13+ Softplus:1-21,22+ Softsign:1-21,22+
    SpaceToDepth:1-12,13+ Split:2-10,11-12,13-17,18+ Sqrt:6-12,13+
    Squeeze:1-10,11-12,13-20,21-22,23,24,25+ Sub:7-12,13,14+ Sum:6-7,8-12,13+ Tanh:6-12,13+
    TensorScatter:24+ ThresholdedRelu:1+,10+ Tile:6-12,13+ TopK:1-9,10,11-23,24+
    Transpose:1-12,13-20,21-22,23-24,25+ Trilu:14+ Unsqueeze:1-10,11-12,13-20,21-22,23,24,25+
    Upsample:7-8,9 Where:9-15,16+ Xor:7+ ai.onnx.ml::LabelEncoder:2-3,4+ com.microsoft::Attention:1+
    com.microsoft::BeamSearch:1+ com.microsoft::BiasAdd:1+ com.microsoft::BiasDropout:1+
    com.microsoft::BiasGelu:1+ com.microsoft::BiasSoftmax:1+ com.microsoft::BiasSplitGelu:1+
    com.microsoft::BitmaskBiasDropout:1+ com.microsoft::BitmaskDropout:1+
    com.microsoft::BranchwiseRMSNorm:1+ com.microsoft::CausalConvWithState:1+
    com.microsoft::ComplexMul:1+ com.microsoft::ComplexMulConj:1+
    com.microsoft::ConvTransposeWithDynamicPads:1+ com.microsoft::DecoderAttention:1+
    com.microsoft::DecoderMaskedMultiHeadAttention:1+ com.microsoft::DecoderMaskedSelfAttention:1+
    com.microsoft::DequantizeLinear:1+ com.microsoft::DequantizeWithOrder:1+
    com.microsoft::DynamicSparseAttention:1+ com.microsoft::DynamicTimeWarping:1+
    com.microsoft::EmbedLayerNormalization:1+ com.microsoft::EngramGate:1+
    com.microsoft::FastGelu:1+ com.microsoft::FusedConv:1+ com.microsoft::FusedMatMul:1+
    com.microsoft::GatedAdd:1+ com.microsoft::GatedDeltaNet:1+ com.microsoft::GatedRMSNorm:1+
    com.microsoft::GatedRelativePositionBias:1+ com.microsoft::GatherBlockQuantized:1+
    com.microsoft::Gelu:1+ com.microsoft::GemmFloat8:1+ com.microsoft::GemmaRotaryEmbedding:1+
    com.microsoft::GreedySearch:1+ com.microsoft::GridSample:1+ com.microsoft::GroupNorm:1+
    com.microsoft::GroupQueryAttention:1+ com.microsoft::HyperConnectionPostMix:1+
    com.microsoft::HyperConnectionPreMix:1+ com.microsoft::Inverse:1+ com.microsoft::Irfft:1+
    com.microsoft::LinearAttention:1+ com.microsoft::LinearAttentionGate:1+
    com.microsoft::LongformerAttention:1+ com.microsoft::MRotaryEmbedding:1+
    com.microsoft::MatMulBlockQuantizedFp4Weight:1+ com.microsoft::MatMulBlockQuantizedFp8Weight:1+
    com.microsoft::MatMulBnb4:1+ com.microsoft::MatMulNBits:1+ com.microsoft::MoE:1+
    com.microsoft::MultiHeadAttention:1+ com.microsoft::NGramHashMapping:1+
    com.microsoft::NGramRepeatBlock:1+ com.microsoft::NhwcConv:1+ com.microsoft::PackedAttention:1+
    com.microsoft::PackedMultiHeadAttention:1+ com.microsoft::PackedSparseAttentionIndexer:1+
    com.microsoft::PagedAttention:1+ com.microsoft::QAttention:1+ com.microsoft::QMoE:1+
    com.microsoft::QOrderedAttention:1+ com.microsoft::QOrderedGelu:1+
    com.microsoft::QOrderedLayerNormalization:1+ com.microsoft::QOrderedLongformerAttention:1+
    com.microsoft::QOrderedMatMul:1+ com.microsoft::QuantizeLinear:1+
    com.microsoft::QuantizeWithOrder:1+ com.microsoft::QuickGelu:1+
    com.microsoft::RelativePositionBias:1+ com.microsoft::RemovePadding:1+
    com.microsoft::RestorePadding:1+ com.microsoft::Rfft:1+ com.microsoft::RotaryEmbedding:1+
    com.microsoft::Sampling:1+ com.microsoft::ScaledSiLU:1+ com.microsoft::SkipGroupNorm:1+
    com.microsoft::SkipLayerNormalization:1+ com.microsoft::SkipSimplifiedLayerNormalization:1+
    com.microsoft::SparseAttention:1+ com.microsoft::SparseAttentionIndexer:1+
    com.microsoft::SparsePagedAttention:1+ com.microsoft::TransposeMatMul:1+ com.microsoft::Trilu:1+
    com.microsoft::UnfoldTensor:1+ com.microsoft::VarlenCausalConvWithState:1+
    com.microsoft::VarlenNGramHashMapping:1+ com.microsoft::WhisperBeamSearch:1+
    com.ms.internal.nhwc::AveragePool:7-9,10,11-18,19-21,22+
    com.ms.internal.nhwc::BatchNormalization:7-8,9-13,14,15+
    com.ms.internal.nhwc::Conv:1-10,11-21,22+ com.ms.internal.nhwc::ConvTranspose:1-10,11-21,22+
    com.ms.internal.nhwc::DepthToSpace:1-10,11-12,13+
    com.ms.internal.nhwc::GlobalAveragePool:1-21,22+ com.ms.internal.nhwc::GlobalMaxPool:1-21,22+
    com.ms.internal.nhwc::GridSample:16-19,20-21,22+ com.ms.internal.nhwc::LRN:1-12,13+
    com.ms.internal.nhwc::MaxPool:1-7,8-9,10,11,12+ com.ms.internal.nhwc::SpaceToDepth:1-12,13+
    """
)
"""Kernels of the CUDA execution provider of onnxruntime-gpu 1.31.1."""

TRAINING_ONLY = frozenset(
    """
    AveragePoolGrad MaxPoolGrad SparseSoftmaxCrossEntropy SparseSoftmaxCrossEntropyGrad
    com.microsoft::AdamOptimizer com.microsoft::AdamWOptimizer com.microsoft::AdasumAllReduce
    com.microsoft::All com.microsoft::BatchNormInternal com.microsoft::BatchNormalizationGrad
    com.microsoft::BatchScale com.microsoft::BiasFastGeluGrad_dX com.microsoft::BiasGeluGrad_dX
    com.microsoft::BiasSoftmaxDropout com.microsoft::BitmaskDropoutGrad
    com.microsoft::BroadcastGradientArgs com.microsoft::ConcatTraining com.microsoft::ConvGrad
    com.microsoft::ConvTransposeGrad com.microsoft::DivGrad com.microsoft::DropoutGrad
    com.microsoft::FakeQuant com.microsoft::FakeQuantGrad com.microsoft::FastGeluGrad
    com.microsoft::FlattenAndUnpad com.microsoft::GRUGrad com.microsoft::GRUTraining
    com.microsoft::GatherElementsGrad com.microsoft::GatherGrad com.microsoft::GatherNDGrad
    com.microsoft::GeluGrad com.microsoft::GistBinarizeDecoder com.microsoft::GistBinarizeEncoder
    com.microsoft::GistPack16Decoder com.microsoft::GistPack16Encoder
    com.microsoft::GistPack1Decoder com.microsoft::GistPack1Encoder com.microsoft::GistPack8Decoder
    com.microsoft::GistPack8Encoder com.microsoft::GistPackMsfp15Decoder
    com.microsoft::GistPackMsfp15Encoder com.microsoft::Group com.microsoft::InPlaceAccumulator
    com.microsoft::InPlaceAccumulatorV2 com.microsoft::InplaceClipGradNorm
    com.microsoft::InvertibleLayerNormalizationGrad com.microsoft::IsFinite com.microsoft::LSTMGrad
    com.microsoft::LSTMTraining com.microsoft::LambOptimizer com.microsoft::LayerNormalizationGrad
    com.microsoft::LeakyReluGrad com.microsoft::LogSoftmaxGrad com.microsoft::LogSoftmaxGrad_13
    com.microsoft::MegatronF com.microsoft::MegatronG com.microsoft::MixedPrecisionScale
    com.microsoft::NcclAllGather com.microsoft::NcclAllReduce com.microsoft::NcclReduceScatter
    com.microsoft::NegativeLogLikelihoodLossInternal
    com.microsoft::NegativeLogLikelihoodLossInternal2 com.microsoft::PadAndUnflatten
    com.microsoft::PassThrough com.microsoft::PythonOp com.microsoft::PythonOpGrad
    com.microsoft::QuickGeluGrad com.microsoft::RecordEvent com.microsoft::Recv
    com.microsoft::ReduceAllL2 com.microsoft::ReduceSumTraining com.microsoft::ReluGrad
    com.microsoft::ResizeGrad com.microsoft::SGDOptimizer com.microsoft::SGDOptimizerV2
    com.microsoft::Scale com.microsoft::ScaledSum com.microsoft::Send com.microsoft::ShrunkenGather
    com.microsoft::SigmoidGrad com.microsoft::SimplifiedLayerNormalizationGrad
    com.microsoft::SliceGrad com.microsoft::SoftmaxCrossEntropy
    com.microsoft::SoftmaxCrossEntropyGrad com.microsoft::SoftmaxCrossEntropyLossGrad
    com.microsoft::SoftmaxCrossEntropyLossInternal
    com.microsoft::SoftmaxCrossEntropyLossInternalGrad com.microsoft::SoftmaxDropoutGrad
    com.microsoft::SoftmaxGrad com.microsoft::SoftmaxGrad_13 com.microsoft::SplitTraining
    com.microsoft::SummaryHistogram com.microsoft::SummaryMerge com.microsoft::SummaryScalar
    com.microsoft::SummaryText com.microsoft::TanhGrad com.microsoft::View com.microsoft::WaitEvent
    com.microsoft::YieldOp com.microsoft::ZeroGradient org.pytorch.aten::ATen
    """.split()  # noqa: SIM905 - one line each is no easier to read
)
"""What onnxruntime-training 1.19.2 has and onnxruntime 1.19.2 has not."""

ADDED_LATER = frozenset(
    """
    com.microsoft::BranchwiseRMSNorm com.microsoft::CausalConvWithState com.microsoft::EngramGate
    com.microsoft::GatedAdd com.microsoft::GatedDeltaNet com.microsoft::GatedRMSNorm
    com.microsoft::GatherBlockQuantized com.microsoft::GatherPacked
    com.microsoft::HyperConnectionPostMix com.microsoft::HyperConnectionPreMix
    com.microsoft::LinearAttention com.microsoft::LinearAttentionGate
    com.microsoft::MRotaryEmbedding com.microsoft::MoEGroupRouter com.microsoft::NGramHashMapping
    com.microsoft::ScaledSiLU com.microsoft::VarlenCausalConvWithState
    com.microsoft::VarlenNGramHashMapping
    """.split()  # noqa: SIM905 - one line each is no easier to read
)
"""Of ONNX Runtime's own operators, those that came after 1.19.2."""
